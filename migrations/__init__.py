"""The database schema as raw SQL, one step a file, each up and down."""

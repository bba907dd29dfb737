"""Running a migration's raw SQL."""

from alembic import op


def run_script(script: str) -> None:
    """Execute statements one by one; a statement ends with a semicolon at the end of a line."""
    for statement in script.split(";\n"):
        if statement.strip():
            # The driver prepares statements and knows no parameters here: take the text as it is.
            op.get_bind().exec_driver_sql(statement)

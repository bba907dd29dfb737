"""Adapters to PostgreSQL, S3 and Redis. SQL and object keys live nowhere else."""

"""The coordinator's database: SQLite by default, PostgreSQL in production."""

"""Where a PGDATA comes from."""

"""The PostgresProcess: the PGDATA folder and the postmaster."""

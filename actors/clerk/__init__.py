"""The Clerk: single requests about the catalog of the running Postgres, and dumps of schemas."""

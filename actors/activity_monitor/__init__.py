"""Watches a running Postgres: are users active, is it up, does it still answer."""

"""The ActivityMonitor: when users were last active, and whether Postgres answers."""

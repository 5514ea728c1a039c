"""What everybody may know about Postgres: binaries, connection options, configuration text, quoting."""

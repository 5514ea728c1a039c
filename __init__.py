"""compute-node: one stateless Postgres from a JSON spec, supervised, with a control plane over HTTP."""

__version__ = "0.1.0"

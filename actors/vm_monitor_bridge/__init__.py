"""Speaks with the autoscaler agent: how much memory Postgres uses, and how large its file cache may be."""

"""The hold of a Static node on its LSN."""

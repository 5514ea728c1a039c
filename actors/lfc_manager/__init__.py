"""The LfcManager: the state of the cache is offloaded while the node runs, and warms the next start."""

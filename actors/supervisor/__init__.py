"""The Supervisor: the node's state and every change of it."""

"""The two front doors: the drop-in `compute_ctl` and `compute-node` for people."""

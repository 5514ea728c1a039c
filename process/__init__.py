"""What belongs to this process and to no actor: signals, logging, limits, the exit."""

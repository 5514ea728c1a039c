"""The actors: one folder each, and the kit that runs them."""

"""The actor kit: typed actors, messages, deferred replies, jobs, timers, and the two runtimes."""

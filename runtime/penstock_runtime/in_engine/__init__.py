"""What runs inside the engine's own process, in the engine's own Python: the standard library only."""

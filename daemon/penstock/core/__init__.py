"""Decisions and the words they are made of: standard library only, no clock, no randomness, no I/O."""

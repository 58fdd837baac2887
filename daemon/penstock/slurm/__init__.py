"""The Slurm port, its backends, and the pure functions that read and write what Slurm speaks."""

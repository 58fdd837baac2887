"""Penstock keeps language models served on a Slurm cluster."""

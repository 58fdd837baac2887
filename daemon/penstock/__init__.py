"""Penstock keeps language models served on a Slurm cluster."""

from importlib.metadata import version

__version__ = version("penstock")

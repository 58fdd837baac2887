"""Fakes that ship: documented, and kept honest by the contract suite."""

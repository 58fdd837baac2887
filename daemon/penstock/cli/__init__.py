"""The penstock command: thin, and everything it does is an RPC."""

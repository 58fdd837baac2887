"""The front door: Envoy, what it is told over xDS, and the few requests it cannot serve at once."""

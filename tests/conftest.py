"""Fixtures that every kind of test may use: each plugin module says what it offers."""

pytest_plugins = ["tests.clusters", "tests.databases", "tests.engines", "tests.penstocks"]

"""Fixtures that every kind of test may use: each plugin module says what it offers."""

import hypothesis

pytest_plugins = [
    "tests.clusters",
    "tests.databases",
    "tests.engines",
    "tests.failures",
    "tests.order",
    "tests.penstocks",
]

# A busy machine is no failure, so no example has a deadline; the whole test has pytest's time-out.
hypothesis.settings.register_profile("penstock", deadline=None)
hypothesis.settings.load_profile("penstock")

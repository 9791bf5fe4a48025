"""Fixtures shared by all tests live in tests/support, one module per thing they provide."""

pytest_plugins = [
    "tests.support.environment",
    "tests.support.guests",
    "tests.support.leftovers",
    "tests.support.registry",
]

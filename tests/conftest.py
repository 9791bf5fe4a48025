"""Fixtures shared by all tests live in tests/support, one module per thing they provide."""

pytest_plugins = ["tests.support.guests", "tests.support.registry"]

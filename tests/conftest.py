"""Fixtures shared by all tests live in tests/support, one module per thing they provide."""

from agent.processes.signals import reset_inherited_signals

reset_inherited_signals()  # a shell or CI may start the tests with ignored signals, which tools and simulators inherit

pytest_plugins = ["tests.support.guests", "tests.support.registry"]

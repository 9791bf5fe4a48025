"""Fixtures shared by all tests live in tests/support, one module per thing they provide."""

import os

from agent.processes.signals import reset_inherited_signals

reset_inherited_signals()  # a shell or CI may start the tests with ignored signals, which tools and simulators inherit

# A proxy in the environment cannot reach the servers that tests start.
for _name in ("no_proxy", "NO_PROXY"):
    os.environ[_name] = "127.0.0.1,localhost,::1"

pytest_plugins = ["tests.support.guests", "tests.support.registry"]

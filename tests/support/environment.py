"""Environment of the test process: what every test may rely on, whatever the shell or CI passed on.

The suite must pass in any locale, time zone, umask and terminal, so none of these is set here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from agent.processes.signals import reset_inherited_signals

if TYPE_CHECKING:
    import pytest

LOOPBACK: Final = "127.0.0.1,localhost,::1"


def pytest_configure(config: pytest.Config) -> None:
    """Reset ignored signals, and bypass proxies for servers on this machine. Runs in each worker before its tests.

    `nohup` and a shell's `&` ignore signals, and tools and simulators would inherit that. Some clients, curl and
    schemathesis among them, send requests for 127.0.0.1 to a proxy, which cannot reach the servers that tests start.
    """
    reset_inherited_signals()
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = LOOPBACK

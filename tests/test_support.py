"""What tests/support promises to every test, tried on processes made for it."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.leftovers import end_leftovers

if TYPE_CHECKING:
    from pathlib import Path

FOREVER = "import time; time.sleep(600)"


def test_leftover_child_is_ended() -> None:
    before = frozenset(psutil.pids())
    child = subprocess.Popen([sys.executable, "-c", FOREVER])
    (left,) = end_leftovers(before)
    assert left.startswith(f"{child.pid} ")
    assert child.wait(10) == -signal.SIGKILL


def test_leftover_of_an_ended_child_is_ended() -> None:
    before = frozenset(psutil.pids())
    source = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {FOREVER!r}], start_new_session=True)"
    subprocess.run([sys.executable, "-c", source], check=True)
    (left,) = end_leftovers(before)
    assert FOREVER in left


def test_ending_child_is_not_a_leftover() -> None:
    before = frozenset(psutil.pids())
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.2)"])
    assert end_leftovers(before) == []
    child.wait(10)


IGNORE_SIGNALS = """
import os, signal, sys
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    signal.signal(number, signal.SIG_IGN)
os.execv(sys.executable, sys.argv[1:])
"""
INNER_TEST = """
import signal, subprocess, sys

PRINT = "import signal; print([signal.getsignal(number) is signal.SIG_IGN for number in (1, 2, 3)])"


def test_signals():
    child = subprocess.run([sys.executable, "-c", PRINT], capture_output=True, text=True)
    assert child.stdout == "[False, False, False]\\n"
"""


@pytest.mark.slow
def test_signals_are_default_when_the_caller_ignores_them(tmp_path: Path) -> None:
    """As under `nohup scripts/test &`."""
    inner = tmp_path / "test_inner.py"
    inner.write_text(INNER_TEST)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.support.environment",
        str(inner),
    ]
    done = subprocess.run(
        [sys.executable, "-c", IGNORE_SIGNALS, *command], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout

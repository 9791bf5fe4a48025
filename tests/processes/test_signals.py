"""Signal dispositions and masks of child processes, under a parent that ignores or blocks every signal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

PARENT = """
import os, signal, sys
free = {signal.SIGKILL, signal.SIGSTOP}
for number in signal.valid_signals() - free:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals() - free)
os.execv(sys.executable, [sys.executable, "-c", *sys.argv[1:]])
"""
"""Runs a program under every signal ignored and blocked."""

AGENT = """
import asyncio, json, os, pathlib, signal, sys, tempfile
from agent.processes.command import Command, CommandRunner
from agent.processes.process import spawn_detached
from agent.processes.signals import reset_inherited_signals
from agent.processes.followed_command import FollowedCommand

async def follow(argv):
    command = await FollowedCommand.start(argv, stdin=False, env={})
    text = b"".join([data async for _, data in command.output()])
    await command.close()
    return text.decode()

def detach(argv):
    folder = pathlib.Path(tempfile.mkdtemp())
    process = spawn_detached(argv, output=folder / "out", cwd=folder)
    os.waitpid(process.pid, 0)
    return (folder / "out").read_text()

async def main(argv):
    run = await CommandRunner().run(Command(argv, 20.0))
    pipe = await CommandRunner().run(Command(("sh", "-c", "kill -PIPE $$"), 20.0), check=False)
    print(json.dumps({
        "run": run.stdout.decode(), "follow": await follow(argv), "detach": await asyncio.to_thread(detach, argv),
        "pipe": pipe.exit_code,
    }))

reset_inherited_signals()
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1):
    os.kill(os.getpid(), number)  # ignored before, so survived now
asyncio.run(main((sys.executable, "-c", sys.argv[1])))
"""

CHILD = """
import signal
ignored = {n for n in signal.valid_signals() if signal.getsignal(n) == signal.SIG_IGN}
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
print(sorted(ignored - {signal.SIGPIPE, signal.SIGXFSZ}), sorted(blocked))
"""
"""Reports its ignored and blocked signals, except those that Python itself ignores."""


def run_under_ignored_signals(program: str, *arguments: str) -> str:
    argv = [sys.executable, "-c", PARENT, program, *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout


def test_ignored_and_blocked_signals_are_inherited_without_a_reset() -> None:
    assert "SIGINT" in run_under_ignored_signals(CHILD)


def test_children_start_with_default_signals_after_a_reset() -> None:
    reports = json.loads(run_under_ignored_signals(AGENT, CHILD).splitlines()[-1])  # log lines come before
    assert reports.pop("pipe") == -13
    assert reports == dict.fromkeys(("run", "follow", "detach"), "[] []\n")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reset_leaves_only_pythons_own_signals_ignored() -> None:
    program = (
        "from agent.processes.signals import reset_inherited_signals; reset_inherited_signals(); import pathlib;"
        "print(pathlib.Path('/proc/self/status').read_text())"
    )
    status = dict(line.split(":\t", 1) for line in run_under_ignored_signals(program).splitlines() if ":\t" in line)
    assert int(status["SigBlk"], 16) == 0
    ignored = {number for number in range(1, 65) if int(status["SigIgn"], 16) >> (number - 1) & 1}
    assert ignored <= {signal.SIGPIPE, signal.SIGXFSZ}

"""The power assertion: caffeinate runs exactly while VMs run."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from agent.host import power_assertion as module
from agent.host.power_assertion import PowerAssertion
from agent.processes.command import CommandRunner
from tests.support.processes import eventually, gone, pids_in

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

CAFFEINATE = """#!/bin/sh
echo "$@" >>{folder}/arguments
echo $$ >>{folder}/pids
exec sleep 60
"""


def caffeinate(folder: Path, text: str = CAFFEINATE) -> str:
    path = folder / "caffeinate"
    path.write_text(text.format(folder=folder))
    path.chmod(0o755)
    return str(path)


async def test_caffeinate_runs_only_while_vms_run(tmp_path: Path) -> None:
    running = True
    assertion = PowerAssertion(CommandRunner(), lambda: running, program=caffeinate(tmp_path), poll_s=0.01)
    task = asyncio.create_task(assertion.run())
    held = await pids_in(tmp_path / "pids", 1)
    assert (tmp_path / "arguments").read_text() == f"-i -s -w {os.getpid()}\n"
    running = False
    await gone(held)
    running = True
    again = (await pids_in(tmp_path / "pids", 2))[-1:]
    task.cancel()
    await asyncio.wait([task])
    await gone(again)
    assert (tmp_path / "pids").read_text().count("\n") == 2


async def test_caffeinate_is_retried_when_missing_or_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    assertion = PowerAssertion(CommandRunner(), lambda: True, program=str(tmp_path / "caffeinate"), poll_s=0.01)
    task = asyncio.create_task(assertion.run())
    await asyncio.sleep(0)
    caffeinate(tmp_path, "#!/bin/sh\necho $$ >>{folder}/pids\n")
    path = tmp_path / "pids"
    await eventually(lambda: path.exists() and path.read_text().count("\n") >= 3)
    task.cancel()
    await asyncio.wait([task])

"""`scripts/demo` until Ctrl-C, as a reader of its hints uses it."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
STOP_S = 15.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


async def test_demo_ends_its_leases_when_interrupted() -> None:
    demo = await asyncio.create_subprocess_exec(
        sys.executable, "scripts/lib/demo.py", "--hypervisor", "tart",
        cwd=ROOT, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert demo.stderr is not None
    try:
        lines: list[str] = []
        async with asyncio.timeout(120):
            while not (lines and "try in another terminal" in lines[-1]):
                lines.append((await demo.stderr.readline()).decode())
        text = "".join(lines)
        assert re.search(r"status page: http://127\.0\.0\.1:\d+/", text)
        setting, *command = shlex.split(text.partition("try in another terminal: ")[2])
        name, _, value = setting.partition("=")
        lease = await asyncio.create_subprocess_exec(
            *command, "--wait", "60s", env={**os.environ, name: value}, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await asyncio.wait_for(lease.communicate(), 90)
        assert (lease.returncode, b"hearth release" in out) == (0, True)
        demo.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(demo.communicate(), STOP_S)
    finally:
        if demo.returncode is None:
            demo.kill()
            await demo.wait()
    assert demo.returncode == 0, err
    assert "Traceback" not in text + err.decode()
    folder = Path(value).parent
    assert not folder.exists()
    assert [one for one in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(one.info["cmdline"] or [])] == []


@pytest.mark.parametrize("script", ["demo", "test"])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_of_a_script_needs_no_setup(tmp_path: Path, script: str, option: str) -> None:
    environment = {"PATH": os.environ["PATH"], "HEARTH_VENV": str(tmp_path / "venv")}
    done = subprocess.run(
        [ROOT / "scripts" / script, option], capture_output=True, text=True, env=environment, check=True, timeout=30
    )
    assert f"scripts/{script}" in done.stdout
    assert not (tmp_path / "venv").exists()

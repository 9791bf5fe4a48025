"""Commands in simulated guests start with default signal dispositions, whatever the test run inherited."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

INHERITED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
AGENT = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    from agent.hypervisors.sessions import open_exec
    from tests.hypervisors.anka_rig import AnkaRig
    from tests.hypervisors.rigs import TartRig, spec
    from tests.support.tart import TartHome

    def tart_rig(folder):
        home = TartHome(folder / "tart-home")
        return TartRig(home, home.add_image(), folder / "records")

    async def main(kind, folder):
        rig = {"tart": tart_rig, "anka": AnkaRig}[kind](Path(folder))
        driver = rig.driver()
        try:
            await driver.clone(spec(), rig.image)
            await driver.start(spec())
            await driver.ping(spec().name, timeout_s=60)
            status = await driver.execute(spec().name, ("/bin/cat", "/proc/self/status"), timeout_s=20)
            print(status.stdout.decode())
            session = await open_exec(driver, spec().name, ("sleep", "600"), stdin=False)
            await session.signal("INT")
            async for _ in session.output():
                pass
            print(f"ExitCode:\\t{session.exit_code}")
            await session.close()
        finally:
            await driver.close()
            rig.clean_up()

    asyncio.run(main(*sys.argv[1:]))
""")


def ignore_and_block() -> None:
    """Ignore and block signals, as `nohup`, background jobs of shells and some CI runners do."""
    for number in INHERITED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {*INHERITED, signal.SIGTERM})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["tart", "anka"])
def test_guest_command_gets_default_signals(kind: str, tmp_path: Path) -> None:
    """The agent and its tools inherit ignored and blocked signals; the guest's command does not."""
    argv = [sys.executable, "-c", AGENT, kind, str(tmp_path)]
    done = subprocess.run(argv, preexec_fn=ignore_and_block, capture_output=True, text=True, timeout=100, check=True)
    status = dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)
    mask = sum(1 << (number - 1) for number in INHERITED)
    assert int(status["SigIgn"], 16) & mask == 0
    assert int(status["SigBlk"], 16) == 0
    assert status["ExitCode"] == "130"

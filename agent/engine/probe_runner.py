"""The probe runner: runs one probe of one VM. Each kind of probe is one small function with a time limit."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import aiohttp
import structlog

from agent.domain.errors import HearthError
from agent.domain.health import TOOL_MARGIN_S, Outcome, ProbeResult
from agent.domain.model import ProbeKind
from agent.domain.text import clip
from agent.hypervisors.contract import GuestError, VmNotRunningError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.domain.model import ProbeSpec
    from agent.hypervisors.contract import Hypervisor

log = structlog.get_logger()

_Result = tuple[Outcome, str]


class ProbeRunner:
    """Runs probes through a hypervisor and one HTTP session."""

    def __init__(self, hypervisor: Hypervisor, http: aiohttp.ClientSession, *, clock: Callable[[], float]) -> None:
        self._hypervisor = hypervisor
        self._http = http
        self._clock = clock
        self._kinds: dict[ProbeKind, Callable[[str, ProbeSpec, float], Awaitable[_Result]]] = {
            ProbeKind.AGENT: self._agent,
            ProbeKind.EXEC: self._exec,
            ProbeKind.TCP: self._tcp,
            ProbeKind.HTTP: self._http_get,
        }

    async def run(self, vm: str, probe: ProbeSpec, *, timeout_s: float) -> ProbeResult:
        """Run a probe once. A wrong answer of the guest is a fail; a probe that cannot be run is an error.

        Never raises: an exception that nothing foresaw is a fail, because the guest's answer is its usual cause.
        """
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s + TOOL_MARGIN_S):
                outcome, detail = await self._kinds[probe.kind](vm, probe, timeout_s)
        except TimeoutError:
            outcome, detail = Outcome.ERROR, f"the tool did not return within {timeout_s + TOOL_MARGIN_S:g} s"
        except (GuestError, VmNotRunningError) as error:
            outcome, detail = Outcome.FAIL, error.message
        except (HearthError, OSError) as error:
            outcome, detail = Outcome.ERROR, str(error)
        except Exception as error:
            log.exception("probe-raised", vm=vm, probe=probe.name)
            outcome, detail = Outcome.FAIL, f"the answer could not be processed: {error!r}"
        return ProbeResult(probe.name, outcome, clip(detail), self._clock(), time.monotonic() - began_s)

    async def _agent(self, vm: str, _probe: ProbeSpec, timeout_s: float) -> _Result:
        await self._hypervisor.ping(vm, timeout_s=timeout_s)
        return Outcome.PASS, "the guest agent answered"

    async def _exec(self, vm: str, probe: ProbeSpec, timeout_s: float) -> _Result:
        result = await self._hypervisor.execute(vm, probe.argv, timeout_s=timeout_s)
        outcome = Outcome.PASS if result.exit_code == probe.exit_code else Outcome.FAIL
        return outcome, f"exit code {result.exit_code}"

    async def _tcp(self, vm: str, probe: ProbeSpec, timeout_s: float) -> _Result:
        address = await self._hypervisor.address(vm)
        try:
            async with asyncio.timeout(timeout_s):
                _, writer = await asyncio.open_connection(address.host, address.ports[probe.port])
        except (TimeoutError, OSError) as error:
            return Outcome.FAIL, f"port {probe.port}: {str(error) or 'no answer in time'}"
        writer.close()
        return Outcome.PASS, f"port {probe.port} accepted"

    async def _http_get(self, vm: str, probe: ProbeSpec, timeout_s: float) -> _Result:
        address = await self._hypervisor.address(vm)
        url = f"http://{address.host}:{address.ports[probe.port]}{probe.path}"
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._http.get(url, timeout=timeout, allow_redirects=False) as response:
                status = response.status
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            return Outcome.FAIL, f"port {probe.port}: {str(error) or 'no answer in time'}"
        return (Outcome.PASS if status == probe.status else Outcome.FAIL), f"HTTP status {status}"

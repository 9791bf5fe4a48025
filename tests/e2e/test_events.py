"""Events over a restart of the agent: numbers without a gap, and streams that resume."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from scripts.lib.bench import simulated

if TYPE_CHECKING:
    from scripts.lib.host import Host

pytestmark = pytest.mark.slow


async def stream(host: Host, until: str, *, after: int | None) -> list[dict[str, Any]]:
    """Return the events after a number, or from now on, up to one whose detail contains `until`."""
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(after)} if after is not None else {})
    events = []
    async with asyncio.timeout(30), host.http.get("/v1/events", headers=headers) as response:
        if after is None:
            await host.call("POST", f"/v1/host/cordon?reason={until}")
        async for line in response.content:
            if line.startswith(b"data: "):
                events.append(json.loads(line.removeprefix(b"data: ")))
                if until in events[-1].get("detail", ""):
                    break
    return events


async def test_event_stream_resumes_after_agent_kill(host: Host) -> None:
    simulated.configure(host)
    await host.start()
    result = await stream(host, "before", after=None)
    await host.call("POST", "/v1/host/uncordon?reason=unseen")
    await host.kill()
    await host.start()
    await host.call("POST", "/v1/host/cordon?reason=afterwards")
    last = result[-1]["number"]
    events = await stream(host, "afterwards", after=last)
    assert [event["number"] for event in events] == list(range(last + 1, last + 1 + len(events)))
    details = " ".join(event.get("detail", "") for event in events)
    assert "unseen" in details, "events without a subscriber are delivered later"

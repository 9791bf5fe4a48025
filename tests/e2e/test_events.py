"""Events over the life of the agent: numbered without a gap, and told on from where a client was."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from scripts.lib.bench import simulated

if TYPE_CHECKING:
    from scripts.lib.host import Host


async def stream(host: Host, until: str, *, after: int | None) -> list[dict[str, Any]]:
    """Follow the events after a number, or from now on, until one with this detail was told."""
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(after)} if after is not None else {})
    told = []
    async with asyncio.timeout(30), host.http.get("/v1/events", headers=headers) as response:
        if after is None:
            await host.call("POST", f"/v1/host/cordon?reason={until}")
        async for line in response.content:
            if line.startswith(b"data: "):
                told.append(json.loads(line.removeprefix(b"data: ")))
                if until in told[-1].get("detail", ""):
                    break
    return told


async def test_a_stream_goes_on_where_it_was_when_the_agent_was_killed(host: Host) -> None:
    simulated.configure(host)
    await host.start()
    result = await stream(host, "before", after=None)
    await host.call("POST", "/v1/host/uncordon?reason=unseen")
    await host.kill()
    await host.start()
    await host.call("POST", "/v1/host/cordon?reason=afterwards")
    last = result[-1]["number"]
    told = await stream(host, "afterwards", after=last)
    assert [event["number"] for event in told] == list(range(last + 1, last + 1 + len(told)))
    details = " ".join(event.get("detail", "") for event in told)
    assert "unseen" in details, "what happened while nobody listened is told"

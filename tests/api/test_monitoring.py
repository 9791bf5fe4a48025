"""The metrics in Prometheus, and the alert rules and the dashboard in docs/monitoring."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from prometheus_client.metrics import MetricWrapperBase

from agent.telemetry.metrics import Metrics, Outcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.api.conftest import Running

MONITORING = Path(__file__).parents[2] / "docs" / "monitoring"


def promtool(*arguments: str, text: str = "", folder: Path = MONITORING) -> None:
    """Run promtool. The assertion shows its output if it fails."""
    result = subprocess.run(
        ["promtool", *arguments], input=text, capture_output=True, text=True, cwd=folder, timeout=30, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def series_names() -> set[str]:
    """Return every series name that a scrape can contain."""
    names = {"up"}
    for metric in vars(Metrics()).values():
        if isinstance(metric, MetricWrapperBase):
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(
                str(metric._type), ("",)
            )
            names |= {f"{metric._name}{suffix}" for suffix in suffixes}
    return names


def dashboard_expressions() -> Iterator[str]:
    for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]:
        yield from (target["expr"] for target in panel["targets"])


async def test_metrics_are_valid_for_promtool(api: Running) -> None:
    api.metrics.boot.labels(pool="small", outcome=Outcome.OK).observe(3.5)
    api.metrics.leases.labels(pool="small", outcome=Outcome.OK).inc()
    async with api.tcp.get("/metrics") as response:
        await asyncio.to_thread(promtool, "check", "metrics", text=await response.text())


def test_alert_rules_pass_their_unit_tests() -> None:
    promtool("check", "rules", "alerts.yml")
    promtool("test", "rules", "alerts_test.yml")


def test_alerts_have_unit_tests() -> None:
    alerts = re.findall(r"- alert: (\w+)", (MONITORING / "alerts.yml").read_text())
    tested = set(re.findall(r"alertname: (\w+)", (MONITORING / "alerts_test.yml").read_text()))
    assert set(alerts) == tested


def test_dashboard_queries_are_valid(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expr.replace("$__rate_interval", "5m")}
        for number, expr in enumerate(dashboard_expressions())
    ]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", "rules.yml", folder=tmp_path)


def test_rules_and_dashboard_use_only_metrics_that_exist() -> None:
    text = "\n".join((*dashboard_expressions(), (MONITORING / "alerts.yml").read_text()))
    used = set(re.findall(r"\b(hearth_\w+)", text))
    assert used
    assert used - series_names() == set()


@asynccontextmanager
async def prometheus(target: int, folder: Path) -> AsyncIterator[str]:
    """Run Prometheus, which scrapes a port of this host, and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = folder / "prometheus.yml"
    scrape = {"job_name": "hearth", "scrape_interval": "1s", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
    config.write_text(json.dumps({"scrape_configs": [scrape]}))
    process = await asyncio.create_subprocess_exec(
        "prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address={address}", "--log.level=error", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        await process.wait()


async def query(client: aiohttp.ClientSession, expression: str) -> list[dict[str, Any]]:
    try:
        async with client.get("/api/v1/query", params={"query": expression}) as response:
            result: list[dict[str, Any]] = (await response.json())["data"]["result"] if response.ok else []
            return result
    except aiohttp.ClientConnectionError:
        return []


@pytest.mark.slow
async def test_prometheus_scrapes_the_agent(api: Running, tmp_path: Path) -> None:
    async with prometheus(api.server.port, tmp_path) as address, aiohttp.ClientSession(address) as client:
        async with asyncio.timeout(30):
            while not (up := await query(client, "hearth_slots")):  # noqa: ASYNC110 - it reports no event
                await asyncio.sleep(0.1)
        slots = {series["metric"]["state"]: series["value"][1] for series in up}
        assert (slots["ready"], slots["starting"], slots["free"]) == ("1", "1", "0")
        assert [series["value"][1] for series in await query(client, "up")] == ["1"]
        assert [series["metric"]["version"] for series in await query(client, "hearth_build_info")] == ["0.1.0"]

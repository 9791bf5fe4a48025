"""The self-test for Macs on the simulators: it answers every question and removes its VMs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from scripts.lib.selftest.__main__ import parser, run
from tests.hypervisors.anka_rig import AnkaRig
from tests.simulators.anka.registry import AnkaRegistry
from tests.support.tart import SIMULATOR, TartHome

if TYPE_CHECKING:
    from scripts.lib.selftest.report import Report

pytestmark = pytest.mark.slow

CHECKLIST = (Path(__file__).parents[1] / "docs" / "mac-checklist.md").read_text()


def answers(report: Report) -> dict[str, Any]:
    """Return the findings by number. Asserts that the checklist has each question and that each is answered."""
    findings = {one["number"]: one for one in json.loads(report.to_json())["findings"]}
    assert {number for number in findings if f"| {number} |" not in CHECKLIST} == set()
    assert [number for number, one in findings.items() if one["answer"] == "not answered"] == []
    assert all(number in report.to_text() for number in findings)
    return findings


async def test_anka_selftest_answers_all_questions(tmp_path: Path) -> None:
    rig = AnkaRig(tmp_path)
    async with AnkaRegistry() as registry:
        template = registry.push("macos", "v1")
        vm = rig.home.find("macos")
        template.id = vm.uuid
        registry.templates = {vm.uuid: template}
        registry.push("macos", "v2")
        rig.home.write("remotes.json", [{"name": "lab", "url": registry.url, "default": True}])
        arguments = [
            "anka",
            "--program",
            str(rig.binary),
            "--template",
            f"{vm.uuid}:v1",
            "--next",
            "v2",
            "--remote",
            "lab",
            "--shrink",
        ]
        try:
            report = await run(parser().parse_args(arguments))
        finally:
            rig.clean_up()
    found = answers(report)
    unexpected = {number: one["answer"] for number, one in found.items() if one["expected"] is False}
    assert unexpected == {}
    assert "tags [{'tag': 'v2'" in found["A-shrink"]["answer"]
    assert set(found) == set(re.findall(r"^\| (A-[a-z-]+) \|", CHECKLIST, re.MULTILINE))
    assert [one.name for one in rig.home.all()] == ["macos"]


async def test_tart_selftest_answers_all_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = TartHome(tmp_path / "tart")
    image = home.add_image()
    monkeypatch.setenv("TART_HOME", str(home.root))
    name = f"registry.example:5000/tests/small@{image.digest}"
    try:
        report = await run(parser().parse_args(["tart", "--program", str(SIMULATOR), "--image", name]))
    finally:
        home.clean_up()
    found = answers(report)
    unexpected = {number: one["answer"] for number, one in found.items() if one["expected"] is False}
    assert unexpected == {}
    assert set(found) == set(re.findall(r"^\| (T-[a-z-]+) \|", CHECKLIST, re.MULTILINE))

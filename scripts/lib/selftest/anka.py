"""Checks that need a Mac with Anka. Each question is a row of docs/mac-checklist.md."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from typing import TYPE_CHECKING, Final

import psutil
from ulid import ULID

if TYPE_CHECKING:
    from scripts.lib.selftest.report import Call, Report

BOOT_S: Final = 240.0
PORT: Final = "22"
PULL_KEYS: Final = ("pull_resume", "pull_failback", "puller_threads")
LATE_S: Final = 2


def _envelope(call: Call) -> str:
    keys = sorted(call.last)
    body = call.body
    shape = sorted(body) if isinstance(body, dict) else type(body).__name__
    return f"exit {call.exit_code}, keys {keys}, body {json.dumps(shape)[:160]}, {call.seconds} s"


class AnkaChecks:
    """Runs the checks in order: each prepares the next."""

    def __init__(
        self,
        report: Report,
        program: str,
        template: str,
        tag: str,
        following: str,
        remote: str,
        *,
        shrink: bool = False,
    ) -> None:
        self._report, self._program = report, program
        self._template, self._tag, self._next, self._remote = template, tag, following, remote
        self._shrink = shrink
        stem = f"hearth-selftest-{str(ULID()).lower()}"
        self._vm, self._others = f"{stem[:-1]}1", (f"{stem[:-1]}2", f"{stem[:-1]}3")

    async def run(self) -> None:
        """Run all checks. Always removes the VMs that it made."""
        try:
            await self._check_stopped_vm()
            await self._check_running_vm()
            await self._check_streams()
            await self._check_slots()
            if self._next:
                await self._check_pulls()
            await self._check_end()
        finally:
            self._report.begin("A-end", "Are all VMs of this run removed?")
            for name in (self._vm, *self._others):
                await self._anka("stop", "--force", name)
                await self._anka("delete", "--yes", name)
            listed = (await self._anka("list")).body
            left = [vm["name"] for vm in listed or () if "hearth-selftest-" in vm["name"]]
            self._answer(f"left: {left or 'nothing'}", expected=not left)

    async def _check_stopped_vm(self) -> None:
        self._report.begin("A-version", "Which release and license is this?")
        version, license_ = await self._anka("version"), await self._anka("license", "show")
        self._answer(f"{version.body}; {license_.body}", expected=isinstance(version.body, dict))

        self._report.begin("A-missing", "How does a query for a missing VM fail?")
        call = await self._anka("show", "hearth-selftest-nothing")
        error = f"code {call.last.get('code')}, message {call.last.get('message')!r}, on stdout"
        self._answer(f"exit {call.exit_code}, {error}", expected=call.last.get("code") == 3)

        self._report.begin("A-missing-list", "And how does `list`?")
        call = await self._anka("list", "hearth-selftest-nothing")
        self._answer(f"{_envelope(call)}, message {call.last.get('message')!r}, stderr {call.stderr[:100]!r}")

        self._report.begin("A-clone", "What does `-j clone` answer, and how long does it take?")
        call = await self._anka("clone", "--tag", self._tag, self._template, self._vm, timeout_s=300)
        self._answer(_envelope(call), expected=call.last.get("status") == "OK")

        self._report.begin("A-taken", "What is the error for a name that exists?")
        call = await self._anka("clone", "--tag", self._tag, self._template, self._vm, timeout_s=300)
        self._answer(
            f"code {call.last.get('code')}, {call.last.get('message')!r}", expected=call.last.get("code") == 18
        )

        self._report.begin("A-memory", "Is memory accepted in MiB, such as 6400M?")
        call = await self._anka("modify", self._vm, "ram", "6400M")
        shown = (await self._anka("show", self._vm)).body or {}
        self._answer(f"ram_size {shown.get('ram_size')}", expected=shown.get("ram_size") == 6400 << 20)

        self._report.begin("A-port", "Is a port rule without a host port accepted?")
        await self._anka("modify", self._vm, "port", "hearth-22", PORT)
        network = (await self._anka("show", self._vm, "network")).body or {}
        self._answer(f"{network}", expected=PORT in str(network.get("port_forwarding_rules")))

        self._report.begin("A-tags", "How does `show tag` list the tags of a template?")
        call = await self._anka("show", self._template, "tag")
        tags = [one.get("tag") for one in call.body] if isinstance(call.body, list) else None
        self._answer(f"{call.body}"[:300], expected=tags is not None and self._tag in tags)

        self._report.begin("A-registry-list", "Does `registry list` use `uuid` or `id`?")
        call = await self._anka("registry", "list")
        first = call.body[0] if isinstance(call.body, list) and call.body else {}
        self._answer(f"keys {sorted(first)}")

        self._report.begin("A-network-failure", "What is `network_failure_action` set to?")
        self._answer((await self._anka("config", "network_failure_action")).stdout.strip()[:200] or "no output")

        self._report.begin("A-pull-config", "What are `pull_resume`, `pull_failback` and `puller_threads` set to?")
        values = [(await self._anka("config", key)).stdout.strip()[:100] for key in PULL_KEYS]
        self._answer("; ".join(values))

    async def _check_running_vm(self) -> None:
        self._report.begin("A-start", "What does `-j start` answer, and is the VM `running` when it returns?")
        began_s = time.monotonic()
        call = await self._anka("start", self._vm, timeout_s=180)
        shown = (await self._anka("show", self._vm)).body or {}
        self._answer(f"{_envelope(call)}; then {shown.get('status')}", expected=shown.get("status") == "running")

        self._report.begin("A-pid", "Does `show` return the hypervisor's process?")
        self._answer(self._process(shown.get("pid")), expected=self._is_anka(shown.get("pid")))

        self._report.begin("A-host-port", "Does Anka report the host port as soon as the VM runs?")
        rules = ((await self._anka("show", self._vm, "network")).body or {}).get("port_forwarding_rules")
        self._answer(f"{rules}", expected="host_port" in str(rules))

        self._report.begin("A-boot", "How long from `start` to an address, and to a command in the guest?")
        ip_s = await self._wait_for_address(began_s)
        call = await self._run("true", timeout_s=BOOT_S)
        while call.exit_code not in (0, None) and time.monotonic() - began_s < BOOT_S:
            await asyncio.sleep(1)
            call = await self._run("true", timeout_s=BOOT_S)
        ready_s = time.monotonic() - began_s
        self._answer(f"address {ip_s:.1f} s, command {ready_s:.1f} s", expected=call.exit_code == 0)

        self._report.begin("A-run", "Does `run` keep streams and exit code of the guest's command apart?")
        call = await self._run("sh", "-c", "exit 7")
        printed = await self._run("echo", "printed")
        clean = printed.stdout == "printed\n" and not printed.stderr
        self._answer(f"exit {call.exit_code}, stdout {printed.stdout!r}, stderr {printed.stderr!r}",
                     expected=call.exit_code == 7 and clean)  # fmt: skip

        self._report.begin("A-run-json", "Does `-j run` wrap what the guest prints?")
        call = await self._anka("run", self._vm, "echo", "printed")
        self._answer(f"{call.stdout!r}"[:300])

    async def _check_streams(self) -> None:
        """Check the assumptions behind following a command (A30)."""
        self._report.begin("A-run-stream", "Does output come while the command runs, and input reach it?")
        slow = await self._run("sh", "-c", f"echo early; sleep {LATE_S}; echo late")
        fed = await self._run("sh", stdin=b"echo fed\n")
        is_streamed = slow.first_output_s is not None and slow.seconds - slow.first_output_s > LATE_S / 2
        self._answer(f"first output after {slow.first_output_s} s of {slow.seconds} s; fed: {fed.stdout!r}",
                     expected=is_streamed and fed.stdout == "fed\n")  # fmt: skip

        self._report.begin("A-run-signal", "Does a command in the guest end when `anka run` is ended by a signal?")
        call = await self._run("sh", "-c", "echo pid=$$; exec sleep 300", timeout_s=5)
        pid = re.search(r"pid=(\d+)", call.stdout + call.stderr)
        alive = await self._run("sh", "-c", f"kill -0 {pid.group(1)}") if pid else None
        self._answer(
            "its pid is unknown" if alive is None else f"it is {'gone' if alive.exit_code else 'still running'}"
        )
        if pid:
            await self._run("sh", "-c", f"kill -9 {pid.group(1)}")

    async def _check_slots(self) -> None:
        self._report.begin("A-slots", "How is a third VM refused, and when does a VM begin to count?")
        outcomes = []
        for name in self._others:
            await self._anka("clone", "--tag", self._tag, self._template, name, timeout_s=300)
            call = await self._anka("start", name, timeout_s=180)
            outcomes.append(str(call.last.get("message") or call.last.get("status")))
        self._answer(
            f"second: {outcomes[0]}; third: {outcomes[1]}",
            expected="maximum number of running instances" in outcomes[1],
        )

        self._report.begin("A-failed", "What becomes of a VM whose hypervisor is killed?")
        pid = ((await self._anka("show", self._others[0])).body or {}).get("pid")
        if self._is_anka(pid):
            psutil.Process(pid).send_signal(signal.SIGKILL)
            await asyncio.sleep(2)
            status = ((await self._anka("show", self._others[0])).body or {}).get("status")
            await self._anka("stop", "--force", self._others[0])
            after = ((await self._anka("show", self._others[0])).body or {}).get("status")
            self._answer(f"{status}; after stop --force {after}", expected=after == "stopped")
        else:
            self._answer("its process is unknown")
            await self._anka("stop", "--force", self._others[0])

    async def _check_pulls(self) -> None:
        pull = ("pull", "--fetch-only", "--tag", self._next, self._template, self._remote)
        check = ("pull", "--check-download-size", "--tag", self._next, self._template, self._remote)

        self._report.begin("A-size", "What does the size check return before and after an interrupted pull?")
        before = await self._anka(*check, timeout_s=120)
        await self._anka(*pull, timeout_s=3)
        after = await self._anka(*check, timeout_s=120)
        self._answer(f"before {before.last}; after 3 s of pulling {after.last}"[:400],
                     expected=before.last.get("status") == "OK")  # fmt: skip

        self._report.begin("A-interrupted", "Does deleting the tag remove the files of an interrupted pull?")
        await self._anka("delete", "--yes", "--tag", self._next, self._template)
        await self._anka("delete", "--cache", timeout_s=120)
        again = await self._anka(*check, timeout_s=120)
        self._answer(f"{again.last}"[:300], expected="available locally" not in str(again.last.get("message")))

        self._report.begin("A-fetch", "Does `--fetch-only` stage a tag while a clone of the old one serves?")
        call = await self._anka(*pull, timeout_s=7200)
        percents = re.findall(r"\d{1,3}\s?%", call.stdout + call.stderr)
        version = next((vm.get("version") for vm in (await self._anka("list")).body or ()
                        if vm.get("uuid") == self._template), None)  # fmt: skip
        serves = await self._run("true", timeout_s=60)
        fine = call.last.get("status") == "OK" and version != self._next and serves.exit_code == 0
        summary = f"{call.seconds} s; printed {percents[:3]}…{percents[-1:]}; checked out {version}"
        self._answer(summary, expected=fine)

        self._report.begin("A-switch", "Does `pull --local` check it out while a clone of the old one runs?")
        call = await self._anka("pull", "--local", "--tag", self._next, self._template, timeout_s=300)
        serves = await self._run("true", timeout_s=60)
        self._answer(_envelope(call), expected=call.last.get("status") == "OK" and serves.exit_code == 0)

        if self._shrink:
            self._report.begin("A-shrink", "What does `pull --shrink` do to a clone of the old tag that runs?")
            shrink = ("pull", "--shrink", "--tag", self._next, self._template, self._remote)
            call = await self._anka(*shrink, timeout_s=7200)
            tags = (await self._anka("show", self._template, "tag")).body
            serves = await self._run("true", timeout_s=60)
            self._answer(f"{_envelope(call)}; tags {tags}; the clone's command: exit {serves.exit_code}"[:400])

    async def _check_end(self) -> None:
        self._report.begin("A-suspend", "Does `suspend` end the process, and what status is reported?")
        call = await self._anka("suspend", self._vm, timeout_s=120)
        status = ((await self._anka("show", self._vm)).body or {}).get("status")
        self._answer(f"exit {call.exit_code}, {status}")

        self._report.begin("A-stop", "What do `-j stop --force` and `-j delete` answer?")
        stop, delete = await self._anka("stop", "--force", self._vm), await self._anka("delete", "--yes", self._vm)
        fine = stop.last.get("status") == delete.last.get("status") == "OK"
        self._answer(f"{_envelope(stop)}; {_envelope(delete)}", expected=fine)

    async def _wait_for_address(self, began_s: float) -> float:
        while time.monotonic() - began_s < BOOT_S:
            if ((await self._anka("show", self._vm)).body or {}).get("ip"):
                break
            await asyncio.sleep(1)
        return time.monotonic() - began_s

    async def _anka(self, *arguments: str, timeout_s: float = 60) -> Call:
        return await self._report.call(self._program, "-j", *arguments, timeout_s=timeout_s)

    async def _run(self, *argv: str, timeout_s: float = 30, stdin: bytes = b"") -> Call:
        env = {"ANKA_LOG_LEVEL": "error"}
        return await self._report.call(self._program, "run", self._vm, *argv, timeout_s=timeout_s, env=env, stdin=stdin)

    def _answer(self, text: str, *, expected: bool | None = None) -> None:
        finding = self._report.findings[-1]
        finding.answer, finding.expected = text, expected

    def _process(self, pid: object) -> str:
        if not isinstance(pid, int) or not psutil.pid_exists(pid):
            return f"pid {pid}"
        return f"pid {pid}: {' '.join(psutil.Process(pid).cmdline())[:200]}"

    def _is_anka(self, pid: object) -> bool:
        return isinstance(pid, int) and psutil.pid_exists(pid) and "anka" in self._process(pid)

"""Brings one version to this host by `anka pull`, and believes it only when it is proven to be there (A18).

Staged first, then switched to: `--fetch-only` leaves what is checked out alone, so VMs are made and served meanwhile.
"""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

import structlog

from agent.anka.command import AnkaError, AnkaNotFoundError, AnkaReplyError
from agent.images.anka.shelf import Held
from agent.images.anka.strays import end_strays
from agent.images.errors import BadImageError, DiskTooSmallError, ImageNotFoundError, TransferError
from agent.processes.command import CommandError, CommandTimeoutError

if TYPE_CHECKING:
    from agent.anka.command import Anka
    from agent.images.anka.remotes import Remotes
    from agent.images.anka.room import Room
    from agent.images.anka.shelf import VersionShelf
    from agent.images.anka.version import Version
    from agent.images.meter import Meter

log = structlog.get_logger()

SIZE_S: Final = 60.0
SWITCH_S: Final = 120.0
DELETE_S: Final = 120.0
BASE_S: Final = 600.0
SLOWEST_BYTES_PER_S: Final = 2 << 20
"""A pull that is slower than this hangs, or might as well."""
_PERCENT: Final = re.compile(rb"(\d{1,3})\s?%")
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_FULL: Final = ("no space left", "disk full", "not enough space", "status 74")


@dataclass(frozen=True, slots=True)
class Size:
    """What `--check-download-size` told, in bytes. `available` is None where it did not."""

    missing: int
    available: int | None = None


@dataclass(frozen=True, slots=True)
class Puller:
    """Pulls one version at a time: two pulls at once corrupt each other (A19)."""

    anka: Anka
    shelf: VersionShelf
    remotes: Remotes
    room: Room

    async def pull(self, version: Version, reference: str, meter: Meter) -> None:
        """Make a version whole on this host. Raises `ImageError`s; what a failed try left is removed then."""
        mark = await asyncio.to_thread(self.shelf.mark, version)
        try:
            await end_strays(self.anka.program)
            await self.remotes.prepare(version)
            local = await self._local(version)
            owned = not local or await asyncio.to_thread(self.shelf.owns, local)
            if await asyncio.to_thread(mark.exists):
                await self._discard(local, version)
            await asyncio.to_thread(mark.touch)
            size = await self.size(version)
            await self.room.make(version, size, self.size)
            meter.expect(version.size_bytes or size.missing)
            meter.done(max(0, version.size_bytes - size.missing))
            local = await self._fetch_and_switch(version, local, size, meter)
        except CommandError as error:
            raise _explained(version, error) from error
        held = Held(version, local, (reference,), owned)
        await asyncio.to_thread(self.shelf.keep, held)

    async def size(self, version: Version) -> Size:
        """Ask how much is missing. An empty answer means nothing, if it says so; else nobody knows."""
        arguments = ("pull", *version.options, "--check-download-size", "--tag", version.tag)
        answer = await self.anka.query(*arguments, version.template, version.source, timeout_s=SIZE_S)
        body = answer.body if isinstance(answer.body, dict) else {}
        if not body and "available locally" in answer.message:
            return Size(0)
        try:
            missing = int(body["size"]) - int(body.get("cached", 0))
            return Size(max(0, missing), int(body["available"]) if "available" in body else None)
        except (KeyError, TypeError, ValueError) as error:
            raise AnkaReplyError(f"`anka pull --check-download-size` of {version.template} tells no size") from error

    async def tags(self, local: str) -> frozenset[str] | None:
        """Return the tags that a template has here; None when there is no such template."""
        try:
            return await self.anka.tags(local) if local else None
        except AnkaNotFoundError:
            return None

    async def _fetch_and_switch(self, version: Version, local: str, size: Size, meter: Meter) -> str:
        """Stage, prove and check out; return the template's UUID. Removes the tag when that fails, if it is new."""
        new = version.tag not in (await self.tags(local) or ())
        try:
            told = await self._fetch(version, size, meter)
            local = local or told or await self._local(version)
            await self._prove(version, local)
            await self._switch(version, local)
        except CommandError:
            if new:
                await self._discard(local or await self._local(version), version)
            raise
        return local

    async def _fetch(self, version: Version, size: Size, meter: Meter) -> str:
        """Run `anka pull`, following how far it is; return the UUID it told, if it did."""
        silence_s = self.anka.config.pull_silence_s
        limit_s = BASE_S + size.missing / SLOWEST_BYTES_PER_S
        done, loop = 0, asyncio.get_running_loop()

        def follow(output: bytes) -> None:
            nonlocal done
            if told := _PERCENT.findall(output):
                now = size.missing * min(100, int(told[-1])) // 100
                if now > done:
                    meter.received(now - done)
                    meter.done(now - done)
                    done = now
                silence.reschedule(loop.time() + silence_s)

        arguments = ("pull", *version.options, "--fetch-only", "--tag", version.tag, version.template, version.source)
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(None) as silence:
                answer = await self.anka.query(*arguments, timeout_s=limit_s, on_output=follow)
        except TimeoutError:
            raise CommandTimeoutError(f"`anka pull` of {version.template} told nothing for {silence_s:g} s") from None
        log.info(
            "anka-pull-ended", image=version.digest, missing_bytes=size.missing,
            duration_s=round(time.monotonic() - began_s, 3),
        )  # fmt: skip
        told = _UUID.search(answer.message)
        return told.group() if told else ""

    async def _prove(self, version: Version, local: str) -> None:
        """Make sure that a pull that said it succeeded did: the tag is there, and nothing of it is missing."""
        tags = await self.tags(local)
        if tags is None or version.tag not in tags:
            raise AnkaError(f"`anka pull` said that {version.template}:{version.tag} is pulled, but it is not here")
        left = await self.size(version)
        if left.missing:
            raise AnkaError(f"`anka pull` of {version.template}:{version.tag} left out {left.missing} bytes")

    async def _switch(self, version: Version, local: str) -> None:
        """Check the tag out, which also clears a template that failed, and make sure of it."""
        await self.anka.query("pull", "--local", "--tag", version.tag, local, timeout_s=SWITCH_S)
        found = next((vm for vm in await self.anka.list() if local in (vm.uuid, vm.name)), None)
        if found is None or found.version != version.tag:
            raise AnkaError(f"{version.template}:{version.tag} is here but cannot be checked out")
        if found.status == "failed":
            raise AnkaError(f"the template {version.template} is in a failed state")

    async def _discard(self, local: str, version: Version) -> None:
        """Remove what a pull that did not end left: a later one would take it for whole (A18)."""
        try:
            if local:
                with suppress(AnkaNotFoundError):
                    await self.anka.query("delete", "--yes", "--tag", version.tag, local, timeout_s=DELETE_S)
            await self.anka.query("delete", "--cache", timeout_s=DELETE_S)
        except CommandError as error:  # the mark stands: it is tried again before the next pull
            log.warning("anka-leftover-stays", image=version.digest, error=str(error))

    async def _local(self, version: Version) -> str:
        """Return the UUID that a version's template has on this host, or nothing."""
        name = PurePath(version.template).name
        return next((vm.uuid for vm in await self.anka.list() if name in (vm.uuid, vm.name)), "")


def _explained(version: Version, error: CommandError) -> Exception:
    """Return what a failure of `anka` means for the pull, and whose fault it is."""
    what, said = f"{version.template}:{version.tag} cannot be pulled", str(error)
    if isinstance(error, AnkaNotFoundError):
        return ImageNotFoundError(f"{what}: {said}", remedy="push it, or mend the reference")
    if any(words in said.lower() for words in _FULL):
        return DiskTooSmallError(f"{what}: {said}", remedy="free some disk space")
    if "failed state" in said:
        return BadImageError(f"{what}: {said}")
    return TransferError(f"{what}: {said}")

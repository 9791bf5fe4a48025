"""Pull a version with `anka pull`, and verify that it is complete: the command's own success is not enough (A18).

The version is fetched first and checked out afterwards. `--fetch-only` does not change the checked-out version, so VMs
start from it during the pull.
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
from agent.images.anka.stray_pulls import end_stray_pulls
from agent.images.anka.version import DownloadSize
from agent.images.anka.version_records import VersionRecord
from agent.images.errors import BadImageError, DiskTooSmallError, ImageNotFoundError, TransferError
from agent.processes.command import CommandError, CommandTimeoutError

if TYPE_CHECKING:
    from agent.anka.command import Anka
    from agent.images.anka.remotes import Remotes
    from agent.images.anka.space_manager import AnkaSpaceManager
    from agent.images.anka.version import Version
    from agent.images.anka.version_records import VersionRecords
    from agent.images.pull_progress import PullProgressTracker

log = structlog.get_logger()

SIZE_TIMEOUT_S: Final = 60.0
CHECKOUT_TIMEOUT_S: Final = 120.0
DELETE_TIMEOUT_S: Final = 120.0
PULL_BASE_TIMEOUT_S: Final = 600.0
SLOWEST_BYTES_PER_S: Final = 2 << 20
"""A slower pull counts as hanging and is ended."""
_MAX_BYTES: Final = 1 << 60
_PERCENT: Final = re.compile(rb"(\d{1,3})\s?%")
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_DISK_FULL: Final = ("no space left", "disk full", "not enough space", "status 74")


@dataclass(frozen=True, slots=True)
class AnkaPuller:
    """Pulls versions. The caller must run one pull at a time: parallel pulls corrupt each other (A19)."""

    anka: Anka
    records: VersionRecords
    remotes: Remotes
    space: AnkaSpaceManager

    async def pull(self, version: Version, reference: str, tracker: PullProgressTracker) -> None:
        """Pull a version, verify it and check it out.

        A failed pull raises `ImageError`s; its remains are removed first.
        """
        marker = await asyncio.to_thread(self.records.marker, version)
        try:
            await end_stray_pulls(self.anka.program)
            await self.remotes.prepare(version)
            local = await self._local(version)
            owned = not local or await asyncio.to_thread(self.records.owns, local)
            if await asyncio.to_thread(marker.exists):
                await self._discard(local, version)
            await asyncio.to_thread(marker.touch)
            size = await self.size(version)
            await self.space.ensure_space(version, size, self.size)
            tracker.set_total(version.size_bytes or size.missing)
            tracker.add_done(max(0, version.size_bytes - size.missing))
            local = await self._fetch_and_check_out(version, local, size, tracker)
        except CommandError as error:
            raise _pull_error(version, error) from error
        record = VersionRecord(version, local, (reference,), owned)
        await asyncio.to_thread(self.records.save, record)

    async def size(self, version: Version) -> DownloadSize:
        """Query how many bytes are missing. An empty reply means 0, but only with the message "available locally"."""
        arguments = ("pull", *version.options, "--check-download-size", "--tag", version.tag)
        answer = await self.anka.query(*arguments, version.template, version.source, timeout_s=SIZE_TIMEOUT_S)
        body = answer.body if isinstance(answer.body, dict) else {}
        if not body and "available locally" in answer.message:
            return DownloadSize(0)
        try:
            missing = _byte_count(body["size"]) - _byte_count(body.get("cached", 0))
            return DownloadSize(max(0, missing), _byte_count(body["available"]) if "available" in body else None)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise AnkaReplyError(f"`anka pull --check-download-size` of {version.template} reported no size") from error

    async def tags(self, local: str) -> frozenset[str] | None:
        """Return the local tags of a template; None if the template does not exist."""
        try:
            return await self.anka.tags(local) if local else None
        except AnkaNotFoundError:
            return None

    async def _fetch_and_check_out(
        self, version: Version, local: str, size: DownloadSize, tracker: PullProgressTracker
    ) -> str:
        """Fetch, verify and check out; return the template's UUID. On failure, remove the tag if it is new."""
        new = version.tag not in (await self.tags(local) or ())
        try:
            reported = await self._fetch(version, size, tracker)
            local = local or reported or await self._local(version)
            await self._verify(version, local)
            await self._check_out(version, local)
        except CommandError:
            if new:
                await self._discard(local or await self._local(version), version)
            raise
        return local

    async def _fetch(self, version: Version, size: DownloadSize, tracker: PullProgressTracker) -> str:
        """Run `anka pull` and track its progress. Return the UUID that it reported, or an empty string."""
        silence_s = self.anka.config.pull_silence_s
        limit_s = PULL_BASE_TIMEOUT_S + size.missing / SLOWEST_BYTES_PER_S
        done, loop = 0, asyncio.get_running_loop()

        def follow(output: bytes) -> None:
            nonlocal done
            if percents := _PERCENT.findall(output):
                now = size.missing * min(100, int(percents[-1])) // 100
                if now > done:
                    tracker.add_fetched(now - done)
                    tracker.add_done(now - done)
                    done = now
                silence.reschedule(loop.time() + silence_s)

        arguments = ("pull", *version.options, "--fetch-only", "--tag", version.tag, version.template, version.source)
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(None) as silence:
                answer = await self.anka.query(*arguments, timeout_s=limit_s, on_output=follow)
        except TimeoutError:
            raise CommandTimeoutError(
                f"`anka pull` of {version.template} printed no progress for {silence_s:g} s"
            ) from None
        log.info(
            "anka-pull-finished", image=version.digest, missing_bytes=size.missing,
            duration_s=round(time.monotonic() - started_s, 3),
        )  # fmt: skip
        uuid = _UUID.search(answer.message)
        return uuid.group() if uuid else ""

    async def _verify(self, version: Version, local: str) -> None:
        """Verify that a successful pull left the tag, and that no byte of it is missing."""
        success = f"`anka pull` reported success for {version.template}:{version.tag}"
        tags = await self.tags(local)
        if tags is None or version.tag not in tags:
            raise AnkaError(f"{success}, but the tag does not exist")
        size = await self.size(version)
        if size.missing:
            raise AnkaError(f"{success}, but {size.missing} bytes are missing")

    async def _check_out(self, version: Version, local: str) -> None:
        """Check the tag out, which also resets a failed template, and verify the result."""
        await self.anka.query("pull", "--local", "--tag", version.tag, local, timeout_s=CHECKOUT_TIMEOUT_S)
        found = next((vm for vm in await self.anka.list() if local in (vm.uuid, vm.name)), None)
        if found is None or found.version != version.tag:
            raise AnkaError(f"`anka pull --local` did not check out {version.template}:{version.tag}")
        if found.status == "failed":
            raise AnkaError(f"the template {version.template} is in a failed state after its pull")

    async def _discard(self, local: str, version: Version) -> None:
        """Remove the remains of an unfinished pull. A later pull would treat them as complete (A18)."""
        try:
            if local:
                with suppress(AnkaNotFoundError):
                    await self.anka.query("delete", "--yes", "--tag", version.tag, local, timeout_s=DELETE_TIMEOUT_S)
            await self.anka.query("delete", "--cache", timeout_s=DELETE_TIMEOUT_S)
        except CommandError as error:  # the marker still exists, so the next pull retries the removal
            log.warning("anka-cleanup-failed", image=version.digest, error=str(error))

    async def _local(self, version: Version) -> str:
        """Return the local UUID of a version's template, or an empty string."""
        name = PurePath(version.template).name
        return next((vm.uuid for vm in await self.anka.list() if name in (vm.uuid, vm.name)), "")


def _pull_error(version: Version, error: CommandError) -> Exception:
    """Return the image error for a failure of `anka`, by its message."""
    message, cause = f"pulling {version.template}:{version.tag} failed: {error}", str(error)
    if isinstance(error, AnkaNotFoundError):
        return ImageNotFoundError(message, remedy="push the template, or correct the reference")
    if any(words in cause.lower() for words in _DISK_FULL):
        return DiskTooSmallError(message, remedy="free some disk space")
    if "failed state" in cause:
        return BadImageError(message)
    return TransferError(message)


def _byte_count(value: object) -> int:
    """Return a size that Anka reported. Raises `ValueError`, `TypeError` or `OverflowError` for any other value."""
    if not isinstance(value, int | float | str):
        raise TypeError(f"{type(value).__name__} is not a number")
    count = int(value)
    if not 0 <= count <= _MAX_BYTES:
        raise ValueError(f"{count} is outside 0 to {_MAX_BYTES}")
    return count

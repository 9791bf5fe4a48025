"""The images of an Anka host (`agent.images.contract.Images`): tags of templates."""

from __future__ import annotations

import asyncio
import platform
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import structlog

from agent.anka.command import Anka
from agent.images.anka.login import Login
from agent.images.anka.pull import DELETE_TIMEOUT_S, AnkaPuller
from agent.images.anka.registry import AnkaRegistry
from agent.images.anka.remotes import Remotes
from agent.images.anka.space_manager import AnkaSpaceManager
from agent.images.anka.version import TemplateName, Version, parse_name
from agent.images.anka.version_records import VersionRecords
from agent.images.errors import BadImageError, TransferError
from agent.images.manifest import digest_of
from agent.images.pull_progress import PullProgressTracker
from agent.images.reference import Reference, RegistryName
from agent.images.repositories import Repositories
from agent.images.shared_pulls import SharedPulls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection

    from agent.config import Config
    from agent.domain.model import Image, LocalImage
    from agent.images.contract import PullProgress
    from agent.images.shared_pulls import PullStart
    from agent.processes.command import CommandRunner

log = structlog.get_logger()

ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


class AnkaImages:
    """Versions of templates, found by the REST API and pulled by `anka pull`, one pull at a time."""

    def __init__(self, config: Config, *, runner: CommandRunner | None = None, arch: str | None = None) -> None:
        anka = config.hypervisor.anka
        self._anka = Anka(anka, runner)
        self._registry = AnkaRegistry(anka, Login(anka, runner))
        self._repositories = Repositories(config.images.registries)
        self._insecure = {host for host, registry in config.images.registries.items() if registry.insecure}
        self._records = VersionRecords(config.data_dir / "images" / "anka")
        self._arch = arch or (_host_arch() if sys.platform == "darwin" else "")
        self._pull_lock = asyncio.Lock()
        self._pulls = SharedPulls()
        self._space = AnkaSpaceManager(
            self._anka,
            self._records,
            config.data_dir,
            reserve_bytes=config.host.disk_reserve_mib << 20,
            budget_bytes=None if config.images.budget_mib is None else config.images.budget_mib << 20,
            evict=self.remove,
        )
        self._puller = AnkaPuller(self._anka, self._records, Remotes(self._anka, anka), self._space)

    async def close(self) -> None:
        """Cancel running pulls and close all connections."""
        await self._pulls.cancel_all()
        await self._registry.close()
        await self._repositories.close()

    async def resolve(self, reference: str) -> str:
        """See `Images.resolve`. The digest is made of template, tag and layers, or is that of an OCI manifest."""
        return (await self._find(reference)).digest

    async def pull(self, reference: str, digest: str) -> None:
        """See `Images.pull`."""
        if digest in await self._present_versions():
            await asyncio.to_thread(self._add_reference, reference, digest)
        else:
            await self._pulls.join(digest, lambda: self._start_pull(reference, digest))

    def progress(self) -> tuple[PullProgress, ...]:
        """See `Images.progress`."""
        return self._pulls.progress()

    async def list(self) -> tuple[Image, ...]:
        """See `Images.list`. Returns the versions that have a record and whose tag Anka has."""
        return await asyncio.to_thread(self._records.images, await self._present_versions())

    async def local(self, digest: str) -> LocalImage:
        """See `Images.local`."""
        return await asyncio.to_thread(self._records.use, digest)

    def protect(self, in_use: Callable[[], Collection[str]]) -> None:
        """See `Images.protect`."""
        self._space.in_use = in_use

    def limit_bandwidth(self, bytes_per_s: float | None) -> None:
        """Log a warning, because `anka pull` has no bandwidth option."""
        if bytes_per_s is not None:
            log.warning("bandwidth-limit-unsupported", reason="`anka pull` has no bandwidth option")

    async def remove(self, digest: str) -> None:
        """See `Images.remove`. A template that the agent pulled is deleted with its last tag."""
        record = (await asyncio.to_thread(self._records.all)).get(digest)
        if record is None:
            return
        tags = await self._puller.tags(record.local)
        if tags is not None and record.version.tag in tags:
            whole_template = record.owned and tags == {record.version.tag}
            tag_option = () if whole_template else ("--tag", record.version.tag)
            await self._anka.query("delete", "--yes", *tag_option, record.local, timeout_s=DELETE_TIMEOUT_S)
            tags = await self._puller.tags(record.local)
            if tags is not None and record.version.tag in tags:
                raise TransferError(
                    f"`anka delete` reported success for {record.local}:{record.version.tag}, but the tag still exists"
                )
        await asyncio.to_thread(self._records.drop, digest)
        log.info("image-removed", image=digest)

    def _start_pull(self, reference: str, digest: str) -> PullStart:
        tracker = PullProgressTracker(reference, digest, source=self._registry.url)
        return self._pull(reference, digest, tracker), tracker

    async def _pull(self, reference: str, digest: str, tracker: PullProgressTracker) -> None:
        async with self._pull_lock:
            version = await self._find(reference)
            if version.digest != digest:
                raise TransferError(
                    f"{reference} was pushed again before its pull started",
                    remedy="pull it again; the agent does so automatically",
                )
            if self._arch and version.arch and version.arch != self._arch:
                raise BadImageError(f"{reference} is built for {version.arch}, but this host is {self._arch}")
            await self._puller.pull(version, reference, tracker)

    async def _find(self, reference: str) -> Version:
        """Return the version that a reference names now."""
        name = parse_name(reference)
        if isinstance(name, TemplateName):
            return await self._registry.find(name)
        assert isinstance(name.name, RegistryName)
        source, tag = self._repositories.open(name), name.target
        digest = await source.digest(tag) or digest_of(await source.manifest(tag))
        return Version(digest, name.name.namespace, tag, self._url(name), oci=True)

    def _url(self, name: Reference) -> str:
        assert isinstance(name.name, RegistryName)
        return f"http{'' if name.name.host in self._insecure else 's'}://{name.name.host}"

    async def _present_versions(self) -> frozenset[str]:
        """Return the digests of the versions that have a record and whose tag Anka has."""
        records = await asyncio.to_thread(self._records.all)
        templates = {record.local for record in records.values()}
        tags = {local: await self._puller.tags(local) or frozenset() for local in templates}
        return frozenset(digest for digest, record in records.items() if record.version.tag in tags[record.local])

    def _add_reference(self, reference: str, digest: str) -> None:
        record = self._records.all().get(digest)
        if record is not None and reference not in record.references:
            self._records.save(replace(record, references=(*record.references, reference)))


def _host_arch() -> str:
    machine = platform.machine()
    return ARCHITECTURES.get(machine, machine)


@asynccontextmanager
async def open_anka_images(config: Config, runner: CommandRunner | None = None) -> AsyncIterator[AnkaImages]:
    """Open the images of an Anka host, and close them at exit."""
    images = AnkaImages(config, runner=runner)
    try:
        yield images
    finally:
        await images.close()

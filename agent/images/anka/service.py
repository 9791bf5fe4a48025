"""The images of an Anka host as the engine sees them (`agent.images.contract.Images`)."""

from __future__ import annotations

import asyncio
import platform
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import structlog

from agent.anka.command import Anka
from agent.images.anka.login import Login
from agent.images.anka.pull import DELETE_S, Puller
from agent.images.anka.registry import AnkaRegistry
from agent.images.anka.remotes import Remotes
from agent.images.anka.room import Room
from agent.images.anka.shelf import VersionShelf
from agent.images.anka.version import TemplateName, Version, parse_name
from agent.images.errors import BadImageError, TransferError
from agent.images.manifest import digest_of
from agent.images.meter import Meter
from agent.images.places import Places
from agent.images.reference import Reference, RegistryName

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection

    from agent.config import Config
    from agent.domain.model import Image, LocalImage
    from agent.images.anka.shelf import Held
    from agent.images.contract import PullProgress
    from agent.processes.command import CommandRunner

log = structlog.get_logger()

ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(slots=True)
class _Flight:
    """One pull under way or waiting for its turn, with everyone who waits for it."""

    task: asyncio.Task[None]
    meter: Meter
    waiters: int = 0


class AnkaImages:
    """Versions of templates: found by REST, brought by `anka pull`, one at a time. `close` when done."""

    def __init__(self, config: Config, *, runner: CommandRunner | None = None, arch: str | None = None) -> None:
        anka = config.hypervisor.anka
        self._anka = Anka(anka, runner)
        self._registry = AnkaRegistry(anka, Login(anka, runner))
        self._places = Places(config.images.registries)
        self._insecure = {host for host, one in config.images.registries.items() if one.insecure}
        self._shelf = VersionShelf(config.data_dir / "images" / "anka")
        self._arch = arch or (_host_arch() if sys.platform == "darwin" else "")
        self._turn = asyncio.Lock()
        self._flights: dict[str, _Flight] = {}
        self._room = Room(
            self._anka,
            self._shelf,
            config.data_dir,
            reserve_bytes=config.host.disk_reserve_mib << 20,
            budget_bytes=None if config.images.budget_mib is None else config.images.budget_mib << 20,
            evict=self.remove,
        )
        self._puller = Puller(self._anka, self._shelf, Remotes(self._anka, anka), self._room)

    async def close(self) -> None:
        """End pulls under way and close all connections."""
        flights = [flight.task for flight in self._flights.values()]
        for task in flights:
            task.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        await self._registry.close()
        await self._places.close()

    async def resolve(self, reference: str) -> str:
        """See `Images.resolve`: template, tag and layers of an Anka Registry, the manifest of an OCI registry."""
        return (await self._find(reference)).digest

    async def pull(self, reference: str, digest: str) -> None:
        """See `Images.pull`."""
        if digest in await self._here():
            await asyncio.to_thread(self._remember, reference, digest)
            return
        flight = self._flights.get(digest)
        if flight is None:
            meter = Meter(reference, digest, source=self._registry.url)
            flight = _Flight(asyncio.create_task(self._pull(reference, digest, meter), name=f"pull {digest}"), meter)
            self._flights[digest] = flight
            flight.task.add_done_callback(lambda _: self._flights.pop(digest, None))
        flight.waiters += 1
        try:
            await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.task.done():
                flight.task.cancel()
                await asyncio.gather(flight.task, return_exceptions=True)

    def progress(self) -> tuple[PullProgress, ...]:
        """See `Images.progress`."""
        return tuple(flight.meter.snapshot() for flight in self._flights.values())

    async def list(self) -> tuple[Image, ...]:
        """See `Images.list`: what is written down and Anka has."""
        return await asyncio.to_thread(self._shelf.images, frozenset(await self._here()))

    async def local(self, digest: str) -> LocalImage:
        """See `Images.local`."""
        return await asyncio.to_thread(self._shelf.use, digest)

    def protect(self, in_use: Callable[[], Collection[str]]) -> None:
        """See `Images.protect`."""
        self._room.in_use = in_use

    def limit_bandwidth(self, bytes_per_s: float | None) -> None:
        """See `Images.limit_bandwidth`. It is not: `anka pull` takes what it gets."""
        if bytes_per_s is not None:
            log.warning("bandwidth-not-limited", reason="`anka pull` cannot be limited")

    async def remove(self, digest: str) -> None:
        """See `Images.remove`. A template goes with its last tag, if it came with us."""
        held = (await asyncio.to_thread(self._shelf.all)).get(digest)
        if held is None:
            return
        tags = await self._puller.tags(held.local)
        if tags is not None and held.version.tag in tags:
            last = held.owned and tags == {held.version.tag}
            which = () if last else ("--tag", held.version.tag)
            await self._anka.query("delete", "--yes", *which, held.local, timeout_s=DELETE_S)
            tags = await self._puller.tags(held.local)
            if tags is not None and held.version.tag in tags:
                raise TransferError(f"`anka delete` said that {held.local}:{held.version.tag} is gone, but it is here")
        await asyncio.to_thread(self._shelf.drop, digest)
        log.info("image-removed", image=digest)

    async def _pull(self, reference: str, digest: str, meter: Meter) -> None:
        async with self._turn:
            version = await self._find(reference)
            if version.digest != digest:
                raise TransferError(
                    f"{reference} was pushed anew while it was to be pulled", remedy="it is resolved again"
                )
            if self._arch and version.arch and version.arch != self._arch:
                raise BadImageError(f"{reference} is for {version.arch}, this host is {self._arch}")
            await self._puller.pull(version, reference, meter)

    async def _find(self, reference: str) -> Version:
        """Return the version that a reference means now."""
        name = parse_name(reference)
        if isinstance(name, TemplateName):
            return await self._registry.find(name)
        assert isinstance(name.name, RegistryName)
        source, tag = self._places.open(name), name.target
        digest = await source.digest(tag) or digest_of(await source.manifest(tag))
        return Version(digest, name.name.namespace, tag, self._url(name), oci=True)

    def _url(self, name: Reference) -> str:
        assert isinstance(name.name, RegistryName)
        return f"http{'' if name.name.host in self._insecure else 's'}://{name.name.host}"

    async def _here(self) -> dict[str, Held]:
        """Return the versions that are written down and whose tags Anka has."""
        held = await asyncio.to_thread(self._shelf.all)
        tags: dict[str, frozenset[str] | None] = {}
        for one in held.values():
            if one.local not in tags:
                tags[one.local] = await self._puller.tags(one.local)
        return {digest: one for digest, one in held.items() if one.version.tag in (tags[one.local] or ())}

    def _remember(self, reference: str, digest: str) -> None:
        held = self._shelf.all().get(digest)
        if held is not None and reference not in held.references:
            self._shelf.keep(replace(held, references=(*held.references, reference)))


def _host_arch() -> str:
    machine = platform.machine()
    return ARCHITECTURES.get(machine, machine)


@asynccontextmanager
async def open_anka_images(config: Config, runner: CommandRunner | None = None) -> AsyncIterator[AnkaImages]:
    """Open the images of an Anka host for as long as they are needed."""
    images = AnkaImages(config, runner=runner)
    try:
        yield images
    finally:
        await images.close()

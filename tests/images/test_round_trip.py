"""Push and pull against real repositories: docker-registry, OCI layouts, and skopeo between them."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from agent.config import RegistryConfig
from agent.images.errors import BadDiskError, BadReferenceError, ImageNotFoundError, RegistryDeniedError
from agent.images.vmconfig import Hardware
from tests.images.disks import MIB, push_layout, sha256_of, write_disk
from tests.images.tartlike import write_tart_layout
from tests.support.registry import PASSWORD, USER, RegistryProcess

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

    from tests.images.conftest import MakeService

HARDWARE = Hardware("linux", "amd64", 4, 1024)


async def skopeo_copy(source: str, target: str) -> None:
    process = await asyncio.create_subprocess_exec(
        "skopeo", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false", source, target
    )
    assert await asyncio.wait_for(process.wait(), 60) == 0


@pytest.mark.registry
async def test_pushed_image_is_pulled_unchanged(
    registry: RegistryProcess, make_service: MakeService, disk: Path
) -> None:
    images = await make_service(registry.host)
    reference = f"{registry.host}/ci/debian:v1"
    digest = await images.push(disk, reference, hardware=HARDWARE, nvram=b"variables" * 100)
    assert await images.resolve(reference) == digest
    await images.pull(reference, digest)

    local = await images.local(digest)
    assert sha256_of(local.disk) == sha256_of(disk)
    assert local.nvram is not None
    assert local.nvram.read_bytes() == b"variables" * 100
    assert (local.os, local.arch) == ("linux", "amd64")
    assert sha256_of(local.directory / "manifest.json") == digest.removeprefix("sha256:")
    config = json.loads((local.directory / "config.json").read_bytes())
    assert (config["cpuCount"], config["memorySize"]) == (4, 1024 * MIB)
    assert sorted(path.name for path in local.directory.iterdir()) == [
        "config.json",
        "disk.img",
        "manifest.json",
        "nvram.bin",
    ]
    (image,) = await images.list()
    assert image.references == (reference,)
    assert image.disk_bytes == disk.stat().st_size


@pytest.mark.registry
async def test_skopeo_copies_to_a_layout_with_the_same_digest(
    registry: RegistryProcess, make_service: MakeService, disk: Path, tmp_path: Path
) -> None:
    images = await make_service(registry.host)
    digest = await images.push(disk, f"{registry.host}/ci/debian:v1", hardware=HARDWARE)
    await skopeo_copy(f"docker://{registry.host}/ci/debian:v1", f"oci:{tmp_path}/copied:v1")
    reference = f"oci-layout:{tmp_path}/copied:v1"
    assert await images.resolve(reference) == digest
    await images.pull(reference, digest)
    local = await images.local(digest)
    assert sha256_of(local.disk) == sha256_of(disk)
    assert local.nvram is None


@pytest.mark.registry
async def test_skopeo_copies_from_a_layout_to_a_registry(
    registry: RegistryProcess, make_service: MakeService, disk: Path, tmp_path: Path
) -> None:
    images = await make_service(registry.host)
    digest = await images.push(disk, f"oci-layout:{tmp_path}/layout:v1", hardware=HARDWARE)
    await skopeo_copy(f"oci:{tmp_path}/layout:v1", f"docker://{registry.host}/ci/debian:v1")
    assert await images.resolve(f"{registry.host}/ci/debian:v1") == digest


async def test_holes_stay_holes(make_service: MakeService, tmp_path: Path) -> None:
    disk = write_disk(tmp_path / "sparse.img", mib=96, every=13)
    images = await make_service()
    digest = await images.push(disk, f"oci-layout:{tmp_path}/layout:v1", hardware=HARDWARE)
    await images.pull(f"oci-layout:{tmp_path}/layout:v1", digest)
    pulled = (await images.local(digest)).disk
    assert sha256_of(pulled) == sha256_of(disk)
    pieces = 96 // 13 + 1
    assert pulled.stat().st_blocks * 512 <= disk.stat().st_blocks * 512 + pieces * 2 * 64 * 1024


async def test_same_disk_gives_the_same_image_and_is_uploaded_once(
    registry: RegistryProcess, make_service: MakeService, disk: Path
) -> None:
    images = await make_service(registry.host)
    uploads: list[int] = []

    async def push(tag: str) -> str:
        return await images.push(
            disk,
            f"{registry.host}/ci/debian:{tag}",
            hardware=HARDWARE,
            progress=lambda report: uploads.append(report.uploaded_bytes),
        )

    first = await push("v1")
    assert uploads[-1] > 0
    uploads.clear()
    assert await push("v2") == first
    assert uploads[-1] == 0


@pytest.mark.registry
async def test_chunks_of_another_repository_are_mounted(
    registry: RegistryProcess, make_service: MakeService, disk: Path, tmp_path: Path
) -> None:
    images = await make_service(registry.host)
    await images.push(disk, f"{registry.host}/ci/debian:v1", hardware=HARDWARE)
    uploads: list[int] = []
    reference = f"{registry.host}/ci/other:v1"
    digest = await images.push(
        disk,
        reference,
        hardware=HARDWARE,
        mount_from="ci/debian",
        progress=lambda report: uploads.append(report.uploaded_bytes),
    )
    assert uploads[-1] == 0
    await images.pull(reference, digest)
    new = write_disk(tmp_path / "new.img", seed=5)
    digest = await images.push(new, reference, hardware=HARDWARE, mount_from="ci/never-seen")
    await images.pull(reference, digest)
    assert sha256_of((await images.local(digest)).disk) == sha256_of(new)


async def test_zero_chunks_are_uploaded_once_and_never_fetched(
    tmp_path: Path, executor: Executor, make_service: MakeService
) -> None:
    disk = write_disk(tmp_path / "d.img", mib=64, every=60)
    digest = await push_layout(disk, tmp_path / "layout", executor)
    images = await make_service()
    reference = f"oci-layout:{tmp_path}/layout:v1"
    assert len(list((tmp_path / "layout" / "blobs" / "sha256").iterdir())) < 12
    await images.pull(reference, digest)
    assert (await images.local(digest)).disk.stat().st_size == 64 * MIB


async def test_image_pushed_by_tart_is_pulled(tmp_path: Path, make_service: MakeService) -> None:
    disk = write_disk(tmp_path / "d.img", mib=70, every=1)
    digest = write_tart_layout(tmp_path / "layout", disk, chunk_bytes=48 * MIB)
    images = await make_service()
    await images.pull(f"oci-layout:{tmp_path}/layout:v1", digest)
    local = await images.local(digest)
    assert sha256_of(local.disk) == sha256_of(disk)
    assert local.nvram is not None


@pytest.mark.registry
async def test_password_is_used_and_a_wrong_one_reported(
    password_registry: RegistryProcess, make_service: MakeService, disk: Path
) -> None:
    host = password_registry.host
    reference = f"{host}/ci/debian:v1"
    right = RegistryConfig(insecure=True, username=USER, password=PASSWORD)
    wrong = RegistryConfig(insecure=True, username=USER, password="guess")
    digest = await (await make_service(host, registry=right)).push(disk, reference, hardware=HARDWARE)
    images = await make_service(host, registry=right)
    await images.pull(reference, digest)
    assert await images.local(digest)

    with pytest.raises(RegistryDeniedError) as raised:
        await (await make_service(host, registry=wrong)).resolve(reference)
    assert host in raised.value.message
    assert repr(USER) in raised.value.message
    assert "[images.registries." in raised.value.remedy
    with pytest.raises(RegistryDeniedError, match="anonymous"):
        await (await make_service(host)).resolve(reference)


@pytest.mark.registry
async def test_unknown_image_of_a_real_registry_is_reported(
    registry: RegistryProcess, make_service: MakeService
) -> None:
    images = await make_service(registry.host)
    with pytest.raises(ImageNotFoundError, match="no tag 'v1'"):
        await images.resolve(f"{registry.host}/never/seen:v1")


async def test_invalid_disk_is_rejected_before_the_upload(make_service: MakeService, tmp_path: Path) -> None:
    images = await make_service()
    reference = f"oci-layout:{tmp_path}/layout:v1"
    (tmp_path / "odd").write_bytes(b"x" * 1000)
    (tmp_path / "qcow2").write_bytes(b"QFI\xfb" + bytes(508))
    for path, says in (
        ("missing", "reading the disk"),
        ("odd", "multiple of 512"),
        ("qcow2", "qemu-img"),
        (".", "failed"),
    ):
        with pytest.raises(BadDiskError, match=says):
            await images.push(tmp_path / path, reference, hardware=HARDWARE)
    (tmp_path / "fine").write_bytes(bytes(512))
    with pytest.raises(BadReferenceError, match="digest"):
        await images.push(tmp_path / "fine", f"oci-layout:{tmp_path}/l@sha256:{'0' * 64}", hardware=HARDWARE)
    assert not (tmp_path / "layout").exists()


async def test_parallel_writers_of_a_layout_keep_all_tags(
    make_service: MakeService, disk: Path, tmp_path: Path
) -> None:
    images = await make_service()
    tags = [f"v{number}" for number in range(12)]
    layout = f"oci-layout:{tmp_path}/layout"
    await asyncio.gather(*(images.push(disk, f"{layout}:{tag}", hardware=HARDWARE) for tag in tags))
    assert len({await images.resolve(f"{layout}:{tag}") for tag in tags}) == 1
    other = write_disk(tmp_path / "other.img", seed=2)
    moved = await images.push(other, f"{layout}:v3", hardware=HARDWARE)
    assert await images.resolve(f"{layout}:v3") == moved != await images.resolve(f"{layout}:v4")
    index = json.loads((tmp_path / "layout" / "index.json").read_bytes())
    found = [entry.get("annotations", {}).get("org.opencontainers.image.ref.name", "") for entry in index["manifests"]]
    assert sorted(tag for tag in found if tag.startswith("v")) == sorted(tags)

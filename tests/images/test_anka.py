"""Images on an Anka host: the REST API of a Registry, and the known behaviour of `anka pull`."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import psutil
import pytest
from aiohttp import web
from pydantic import SecretStr

from agent.anka.command import AnkaReplyError
from agent.config import AnkaConfig, Config, HostConfig, HypervisorConfig, ImagesConfig, RegistryConfig
from agent.images.anka.service import AnkaImages, open_anka_images
from agent.images.anka.stray_pulls import find_stray_pulls, is_pull
from agent.images.errors import (
    BadImageError,
    BadReferenceError,
    DiskTooSmallError,
    ImageNotFoundError,
    RegistryDeniedError,
    RegistryError,
    TransferError,
)
from agent.processes.process import ProcessIdentity, identify, is_alive
from tests.api.certificates import authority, certificate
from tests.simulators.anka.faults import Switches, set_faults
from tests.simulators.anka.install import REPOSITORY, install
from tests.simulators.anka.registry import LAYER_BYTES, AnkaRegistry
from tests.simulators.anka.state import Home
from tests.simulators.anka.transfer import CONCURRENT_PULL
from tests.support.processes import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.slow

MIB = 1 << 20


class Host:
    """A simulated Anka host and its Registry."""

    def __init__(self, folder: Path, registry: AnkaRegistry) -> None:
        self.folder = folder
        self.registry = registry
        self.home = Home(folder / "anka")
        self.binary = install(self.home.root)
        self.home.prepare()

    def config(self, *, reserve_mib: int = 0, insecure: tuple[str, ...] = (), **anka: object) -> Config:
        login = AnkaConfig.model_validate({"binary": str(self.binary), "registry": self.registry.url} | anka)
        return Config(
            data_dir=self.folder,
            host=HostConfig(disk_reserve_mib=reserve_mib),
            hypervisor=HypervisorConfig(anka=login),
            images=ImagesConfig(registries={host: RegistryConfig(insecure=True) for host in insecure}),
        )

    def faults(self, **commands: Switches) -> None:
        set_faults(self.home.root, **commands)

    def tags(self, template: str) -> set[str]:
        return set(self.home.find(template).tags)

    def broken(self) -> list[Path]:
        return list(self.home.images.glob("*.broken"))

    def calls(self, *words: str) -> int:
        """Return how often `anka` was called with these words in its command line."""
        lines = (self.home.root / "calls.log").read_text().splitlines()
        return sum(all(f'"{word}"' in line for word in words) for line in lines)


@asynccontextmanager
async def running_host(folder: Path, **registry: object) -> AsyncIterator[Host]:
    async with AnkaRegistry(**registry) as server:  # type: ignore[arg-type]
        yield Host(folder, server)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with running_host(tmp_path) as host:
        host.registry.push("macos", "v1")
        yield host


@pytest.fixture
async def images(host: Host) -> AsyncIterator[AnkaImages]:
    async with open_anka_images(host.config()) as images:
        yield images


async def pulled(images: AnkaImages, reference: str) -> str:
    digest = await images.resolve(reference)
    await images.pull(reference, digest)
    return digest


async def test_version_is_identified_by_template_tag_and_layers(host: Host, images: AnkaImages) -> None:
    first = await images.resolve("anka:macos:v1")
    (template,) = host.registry.templates
    assert await images.resolve(f"anka:{template}:v1") == first, "by name and by UUID"
    host.registry.push("macos", "v2")
    assert await images.resolve("anka:macos:v1") == first
    assert await images.resolve("anka:macos") == await images.resolve("anka:macos:v2") != first, "the newest"
    host.registry.push("macos", "v1")
    assert await images.resolve("anka:macos:v1") != first, "pushed again under its old name"


@pytest.mark.parametrize("reference", ["anka:", "anka:a b", "anka:macos:", "oci-layout:/x:1", "anka:macos:a/b", "X"])
async def test_invalid_reference_is_rejected(images: AnkaImages, reference: str) -> None:
    with pytest.raises(BadReferenceError):
        await images.resolve(reference)


async def test_missing_or_ambiguous_template_is_an_error(host: Host, images: AnkaImages) -> None:
    for reference in ("anka:nothing:v1", "anka:macos:v9"):
        with pytest.raises(ImageNotFoundError, match=r"has no"):
            await images.resolve(reference)
    host.registry.push("other", "v1").name = "macos"
    with pytest.raises(BadImageError, match="several templates"):
        await images.resolve("anka:macos:v1")


async def test_pull_completes_a_version_and_checks_it_out(host: Host, images: AnkaImages) -> None:
    digest = await pulled(images, "anka:macos:v1")
    (image,) = await images.list()
    assert (image.digest, image.references) == (digest, ("anka:macos:v1",))
    assert image.allocated_bytes == 2 * LAYER_BYTES
    (template,) = host.registry.templates
    assert (await images.local(digest)).known_as == f"{template}:v1"
    assert host.home.find("macos").version == "v1"
    assert images.progress() == ()
    await images.pull("anka:macos", digest)
    assert (await images.list())[0].references == ("anka:macos:v1", "anka:macos")
    assert host.calls("pull", "--fetch-only") == 1, "what is here is not pulled again"


async def test_pull_reports_progress(host: Host, images: AnkaImages) -> None:
    digest = await images.resolve("anka:macos:v1")
    host.faults(pull={"drip_s": 0.2})
    task = asyncio.create_task(images.pull("anka:macos:v1", digest))

    def half() -> bool:
        return any(0 < one.done_bytes < one.total_bytes for one in images.progress())

    await eventually(half)
    await task


async def test_pull_keeps_the_old_tag_and_fetches_only_new_layers(host: Host, images: AnkaImages) -> None:
    first = await pulled(images, "anka:macos:v1")
    host.registry.push("macos", "v2")
    host.registry.requests.clear()
    second = await pulled(images, "anka:macos:v2")
    assert [path for path in host.registry.requests if path.startswith("/files/")] == [
        f"/files/{host.registry.templates[host.home.find('macos').uuid].tags[1].images[0]}"
    ]
    assert {image.digest for image in await images.list()} == {first, second}
    assert host.tags("macos") == {"v1", "v2"}
    assert host.home.find("macos").version == "v2"


async def test_failed_pull_leaves_no_partial_version(host: Host, images: AnkaImages) -> None:
    digest = await images.resolve("anka:macos:v1")
    host.faults(pull={"break_at": 2})
    with pytest.raises(TransferError, match="Input/output error"):
        await images.pull("anka:macos:v1", digest)
    assert await images.list() == ()
    host.faults()
    await images.pull("anka:macos:v1", digest)
    assert host.broken() == []
    assert len(list(host.home.images.glob("*.ank"))) == 2


async def test_pull_fails_when_anka_wrongly_reports_success(host: Host, images: AnkaImages) -> None:
    digest = await images.resolve("anka:macos:v1")
    host.faults(pull={"lie": True})
    with pytest.raises(TransferError, match="but the tag does not exist"):
        await images.pull("anka:macos:v1", digest)
    assert await images.list() == ()


async def test_pull_removes_remains_of_a_killed_agent_first(host: Host, images: AnkaImages) -> None:
    digest = await images.resolve("anka:macos:v1")
    host.faults(pull={"stall": True})
    task = asyncio.create_task(images.pull("anka:macos:v1", digest))
    await eventually(host.broken)
    task.cancel()
    await asyncio.wait([task])
    assert host.tags("macos") == {"v1"}, "anka takes it for whole"
    host.faults()
    async with open_anka_images(host.config()) as next_agent:
        assert await next_agent.list() == ()
        await next_agent.pull("anka:macos:v1", digest)
    assert host.broken() == []


async def test_pull_is_ended_when_its_progress_stops(host: Host) -> None:
    host.faults(pull={"stall": True})
    async with open_anka_images(host.config(pull_silence_s=0.3)) as images:
        with pytest.raises(TransferError, match=r"printed no progress for 0\.3 s"):
            await pulled(images, "anka:macos:v1")


async def test_pulls_run_one_after_another(host: Host, images: AnkaImages) -> None:
    host.registry.push("linux", "v1")
    host.faults(pull={"drip_s": 0.05})
    await asyncio.gather(pulled(images, "anka:macos:v1"), pulled(images, "anka:linux:v1"))
    assert host.broken() == []
    assert len(await images.list()) == 2


AGENT = """
import asyncio, sys
from agent.config import Config
from agent.images.anka.service import open_anka_images

async def main():
    async with open_anka_images(Config.model_validate_json(sys.argv[1])) as images:
        await images.pull("anka:macos:v1", await images.resolve("anka:macos:v1"))

asyncio.run(main())
"""


async def test_stray_pull_is_ended_before_the_next_pull(host: Host) -> None:
    host.faults(pull={"drip_s": 5.0, "times": 2})  # the query for the size is the first
    config = host.config()
    config_json = json.dumps({
        "data_dir": str(host.folder),
        "host": {"disk_reserve_mib": 0},
        "hypervisor": {"anka": {"binary": str(host.binary), "registry": host.registry.url}},
    })  # fmt: skip
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", AGENT, config_json, cwd=REPOSITORY)
    try:
        await eventually(lambda: list(host.home.images.glob(".*")), timeout_s=30)  # a layer is being transferred
        (pull,) = await asyncio.to_thread(find_pulls, str(host.binary))
        assert find_stray_pulls(str(host.binary)) == (), "the pull of a running agent is not a stray"
    finally:
        agent.kill()
        await agent.wait()
    assert is_alive(pull), "the pull outlives its agent"
    async with open_anka_images(config) as next_agent:
        digest = await pulled(next_agent, "anka:macos:v1")
        assert [image.digest for image in await next_agent.list()] == [digest]
    assert not is_alive(pull)
    assert not (host.home.root / CONCURRENT_PULL).exists(), "two pulls never run in parallel"
    assert host.broken() == []
    assert all(path.stat().st_size == LAYER_BYTES for path in host.home.images.glob("*.ank"))


def find_pulls(program: str) -> list[ProcessIdentity]:
    """Return all pulls by a program, strays or not."""
    found = psutil.process_iter(["pid", "cmdline"])
    pids = [process.info["pid"] for process in found if is_pull(process.info["cmdline"] or (), program)]
    return [identity for pid in pids if (identity := identify(pid))]


async def test_callers_of_one_version_share_a_pull(host: Host, images: AnkaImages) -> None:
    await asyncio.gather(*(pulled(images, "anka:macos:v1") for _ in range(3)))
    assert host.calls("pull", "--fetch-only") == 1


async def test_pull_fails_when_its_tag_was_pushed_again(host: Host, images: AnkaImages) -> None:
    old = await pulled(images, "anka:macos:v1")
    host.registry.push("macos", "v1")
    with pytest.raises(TransferError, match="pushed again"):
        await images.pull("anka:macos:v1", "sha256:" + "0" * 64)
    host.home.find("macos")
    assert [image.digest for image in await images.list()] == [old]


async def test_empty_reply_is_not_an_empty_list(host: Host, images: AnkaImages) -> None:
    await pulled(images, "anka:macos:v1")
    host.faults(show={"empty_body": True})
    with pytest.raises(AnkaReplyError, match="instead of a list"):
        await images.list()


async def test_pull_evicts_the_least_recently_used_idle_version(host: Host, images: AnkaImages) -> None:
    kept, first = await pulled(images, "anka:macos:v1"), None
    for name in ("one", "two"):
        host.registry.push(name, "v1")
        first = await pulled(images, f"anka:{name}:v1") if first is None else first
    await pulled(images, "anka:two:v1")
    images.protect(lambda: {kept})
    # Anka reports enough space for one version as soon as one tag is deleted.
    host.home.write("tag-takes.json", 2 * LAYER_BYTES)
    host.home.write("available.json", 2 * LAYER_BYTES * 3)
    host.registry.push("three", "v1")
    await pulled(images, "anka:three:v1")
    assert {vm.name for vm in host.home.all()} == {"macos", "two", "three"}, "`one` was used longest ago"


async def test_pull_evicts_nothing_when_the_space_is_insufficient(host: Host) -> None:
    async with open_anka_images(host.config(reserve_mib=10**9)) as images:
        images.protect(lambda: ())
        with pytest.raises(DiskTooSmallError, match="MiB can be freed"):
            await pulled(images, "anka:macos:v1")
    assert host.calls("pull", "--fetch-only") == 0


async def test_remove_deletes_the_template_with_its_last_tag(host: Host, images: AnkaImages) -> None:
    first = await pulled(images, "anka:macos:v1")
    host.registry.push("macos", "v2")
    second = await pulled(images, "anka:macos:v2")
    await images.remove(first)
    assert host.tags("macos") == {"v2"}
    with pytest.raises(ImageNotFoundError):
        await images.local(first)
    for _ in range(2):
        await images.remove(second)
    assert host.home.all() == []
    assert await images.list() == ()


async def test_remove_keeps_a_template_that_existed_before(host: Host, images: AnkaImages) -> None:
    (template,) = host.registry.templates
    host.home.add("macos", uuid=template)
    await images.remove(await pulled(images, "anka:macos:v1"))
    assert [(vm.name, vm.tags) for vm in host.home.all()] == [("macos", {})]


async def test_version_deleted_by_hand_is_not_listed(host: Host, images: AnkaImages) -> None:
    digest = await pulled(images, "anka:macos:v1")
    subprocess.run([host.binary, "delete", "--yes", "macos"], check=True, capture_output=True)
    assert await images.list() == ()
    await images.pull("anka:macos:v1", digest)
    assert [image.digest for image in await images.list()] == [digest]


async def test_unreachable_registry_is_a_registry_error(host: Host) -> None:
    async with open_anka_images(host.config(registry="http://localhost:9")) as images:
        with pytest.raises(RegistryError, match="connecting to .* failed"):
            await images.resolve("anka:macos:v1")


@pytest.mark.parametrize("answer", [web.Response(text="<html>"), web.json_response([]), web.Response(status=500)])
async def test_invalid_registry_reply_is_an_error(host: Host, images: AnkaImages, answer: web.Response) -> None:
    host.registry.answer = answer
    with pytest.raises(RegistryError):
        await images.resolve("anka:macos:v1")


async def test_remote_is_replaced_only_under_its_default_name(host: Host) -> None:
    host.home.write("remotes.json", [{"name": "hearth", "url": "http://old:8089", "default": True}])
    async with open_anka_images(host.config()) as images:
        await pulled(images, "anka:macos:v1")
    host.home.write("remotes.json", [{"name": "theirs", "url": "http://old:8089", "default": True}])
    host.registry.push("macos", "v2")
    async with open_anka_images(host.config(remote="theirs")) as images:
        with pytest.raises(RegistryError, match="the remote theirs"):
            await pulled(images, "anka:macos:v2")


async def test_root_token_authorizes_the_rest_api(tmp_path: Path) -> None:
    async with running_host(tmp_path, root_token="secret") as host:
        host.registry.push("macos", "v1")
        async with open_anka_images(host.config()) as images:
            with pytest.raises(RegistryDeniedError, match="Authentication Required"):
                await images.resolve("anka:macos:v1")
        async with open_anka_images(host.config(root_token=SecretStr("secret"))) as images:
            assert await images.resolve("anka:macos:v1")


@pytest.fixture(scope="session")
def api_key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("key")
    private, public = folder / "key.pem", folder / "key.pub"
    for arguments in (
        ("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", private),
        ("pkey", "-in", private, "-pubout", "-out", public),
    ):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
    return private, public


async def test_api_key_opens_sessions_when_needed(tmp_path: Path, api_key: tuple[Path, Path]) -> None:
    private, public = api_key
    async with running_host(tmp_path, keys={"ci": public}) as host:
        host.registry.push("macos", "v1")
        async with open_anka_images(host.config(api_key_id="ci", api_key_file=str(private))) as images:
            await pulled(images, "anka:macos:v1")
            host.registry.expire_sessions()
            assert await images.resolve("anka:macos:v1")
        async with open_anka_images(host.config(api_key_id="stranger", api_key_file=str(private))) as images:
            with pytest.raises(RegistryDeniedError):
                await images.resolve("anka:macos:v1")


async def test_client_certificate_is_sent_to_the_registry(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    folder.mkdir()
    ca = str(authority(folder))
    server, ours = certificate(folder, "server"), certificate(folder, "client", subject="hosts")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca)
    context.load_cert_chain(server.certificate, server.key)
    context.verify_mode = ssl.CERT_REQUIRED
    async with running_host(tmp_path, tls=context) as host:
        host.registry.push("macos", "v1")
        async with open_anka_images(host.config(ca_file=ca)) as images:
            with pytest.raises(RegistryError):
                await images.resolve("anka:macos:v1")
        login = host.config(ca_file=ca, cert_file=str(ours.certificate), key_file=str(ours.key))
        async with open_anka_images(login) as images:
            await pulled(images, "anka:macos:v1")


@pytest.fixture
async def oci() -> AsyncIterator[str]:
    """An OCI registry that serves one image with two layers."""
    layer = b'{"serves": "oci"}'.ljust(LAYER_BYTES, b"\0")
    manifest = {"schemaVersion": 2, "layers": [{"digest": f"sha256:{n * 64}", "size": LAYER_BYTES} for n in "ab"]}
    app = web.Application()

    async def blob(_: web.Request) -> web.Response:
        return web.Response(body=layer)

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(manifest)

    app.router.add_get("/v2/ci/macos/manifests/{tag}", answer)
    app.router.add_get("/v2/ci/macos/blobs/{digest}", blob)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "localhost", 0)
    await site.start()
    server = site._server
    assert isinstance(server, asyncio.Server)
    yield f"localhost:{server.sockets[0].getsockname()[1]}"
    await runner.cleanup()


async def test_oci_pull_depends_on_the_anka_release(host: Host, oci: str) -> None:
    async with open_anka_images(host.config(insecure=(oci,))) as images:
        host.home.write("version.json", {"product": "Anka", "version": "3.8.6", "build": "1"})
        with pytest.raises(BadImageError, match=r"Anka 3\.8\.6 cannot pull from OCI"):
            await pulled(images, f"{oci}/ci/macos:v3")
        host.home.write("version.json", {"product": "Anka", "version": "3.9.2", "build": "1"})
        digest = await pulled(images, f"{oci}/ci/macos:v3")
        assert (await images.local(digest)).known_as == f"{host.home.find('macos').uuid}:v3"
        assert [image.digest for image in await images.list()] == [digest]

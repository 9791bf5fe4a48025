"""Logins in every form in which docker, podman and oras write them."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any

import pytest

from agent.config import RegistryConfig
from agent.images.errors import RegistryDeniedError
from agent.images.repositories import default_credential_files
from agent.images.sources.credentials import ConfiguredCredentials, Credentials, DockerCredentials
from agent.images.vmconfig import Hardware
from agent.processes.command import CommandRunner
from tests.support.registry import PASSWORD, USER, RegistryProcess

if TYPE_CHECKING:
    from pathlib import Path

    from tests.images.conftest import MakeService

AUTH = {"auth": base64.b64encode(b"user:secret").decode()}
LOGIN = Credentials("user", "secret")


def written(path: Path, document: object) -> DockerCredentials:
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return DockerCredentials(path, CommandRunner())


@pytest.mark.parametrize(
    "key",
    [
        "reg.example:5000",
        "https://reg.example:5000",
        "http://reg.example:5000",
        "https://reg.example:5000/",
        "https://reg.example:5000/v1/",
        "https://reg.example:5000/v2",
        "reg.example:5000/",
        "reg.example:5000/team",
        "reg.example:5000/team/image",
    ],
)
async def test_login_is_found_by_any_form_of_its_key(key: str, tmp_path: Path) -> None:
    file = written(tmp_path / "c.json", {"auths": {"other.example": {"auth": "eDp5"}, key: AUTH}})
    assert await file.find("reg.example:5000", "team/image") == LOGIN
    assert await file.find("reg.example", "team/image") is None


async def test_most_specific_key_wins(tmp_path: Path) -> None:
    """podman writes one entry for each repository that a login is limited to."""
    entries = {name: {"username": name, "password": "p"} for name in ("r.example", "r.example/a", "r.example/a/b")}
    file = written(tmp_path / "auth.json", {"auths": entries})
    for repository, name in (
        ("a/b", "r.example/a/b"),
        ("a/c", "r.example/a"),
        ("ab/c", "r.example"),
        ("", "r.example"),
    ):
        assert await file.find("r.example", repository) == Credentials(name, "p")


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io"])
async def test_login_of_docker_hub_is_found(key: str, tmp_path: Path) -> None:
    file = written(tmp_path / "c.json", {"auths": {key: AUTH}})
    assert await file.find("docker.io", "library/debian") == LOGIN


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        (AUTH, LOGIN),
        ({"username": "user", "password": "secret"}, LOGIN),
        ({"username": "user", "password": "secret", **AUTH, "email": "a@b"}, LOGIN),
        ({"auth": base64.b64encode(b"user:se:cret\0\0").decode()}, Credentials("user", "se:cret")),
        ({"auth": base64.b64encode(b"0000:").decode(), "identitytoken": "t"}, Credentials(identity_token="t")),
        ({"registrytoken": "t"}, Credentials(registry_token="t")),
        ({}, None),
        ({"auth": ""}, None),
        ({"auth": "dXNlcg=="}, None),
        ({"auth": 3}, None),
        ({"username": "user"}, None),
    ],
)
async def test_every_form_of_an_entry_is_read(entry: dict[str, Any], found: Credentials | None, tmp_path: Path) -> None:
    assert await written(tmp_path / "c.json", {"auths": {"r.example": entry}}).find("r.example") == found


@pytest.mark.parametrize(
    "content", ["", "\n", "null", "[" * 100_000, '{"auths": {"r.example": [1]}}', '{"credHelpers": {"r.example": 3}}']
)
async def test_unusable_file_means_no_login(content: str, tmp_path: Path) -> None:
    assert await written(tmp_path / "c.json", content).find("r.example") is None


async def test_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    file = written(tmp_path / "c.json", "\ufeff" + json.dumps({"auths": {"r.example": AUTH}}))
    assert await file.find("r.example") == LOGIN


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A helper that has one login, and one that fails like a helper of another kind of registry."""
    for name, script in (
        ("works", 'read s; echo "{\\"Username\\":\\"$s\\",\\"Secret\\":\\"s\\"}"'),
        ("empty", 'echo "{\\"Username\\":\\"\\",\\"Secret\\":\\"\\"}"'),
        ("foreign", 'echo "this helper can only be used with another registry"; exit 1'),
        ("unknown", 'echo "Credentials not found in the keychain"; exit 1'),
    ):
        program = tmp_path / f"docker-credential-{name}"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return "works"


@pytest.mark.parametrize(
    "key",
    ["r.example", "https://r.example", "https://r.example/", "*.example", r".*\.example", r"r\.(example|test)", "["],
)
async def test_helper_is_chosen_by_key_or_pattern(key: str, helper: str, tmp_path: Path) -> None:
    file = written(tmp_path / "c.json", {"credHelpers": {key: helper}})
    expected = None if key == "[" else Credentials("r.example", "s")
    assert await file.find("r.example") == expected
    assert await file.find("r.example.org") is None


async def test_exact_key_of_a_helper_wins_over_a_pattern(helper: str, tmp_path: Path) -> None:
    file = written(tmp_path / "c.json", {"credHelpers": {".*": "foreign", "r.example": helper}})
    assert await file.find("r.example") == Credentials("r.example", "s")


async def test_store_is_queried_by_the_name_of_its_login(helper: str, tmp_path: Path) -> None:
    auths: dict[str, object] = {"https://r.example/v1/": {}}
    file = written(tmp_path / "c.json", {"auths": auths, "credsStore": helper})
    assert await file.find("r.example") == Credentials("https://r.example/v1/", "s")
    assert await file.find("docker.io") == Credentials("https://index.docker.io/v1/", "s")


@pytest.mark.parametrize("name", ["empty", "unknown"])
@pytest.mark.usefixtures("helper")
async def test_helper_without_a_login_means_anonymous(name: str, tmp_path: Path) -> None:
    assert await written(tmp_path / "c.json", {"credsStore": name}).find("r.example") is None


@pytest.mark.parametrize("name", ["foreign", "missing"])
@pytest.mark.usefixtures("helper")
async def test_failed_helper_does_not_hide_a_login(name: str, tmp_path: Path) -> None:
    file = written(tmp_path / "c.json", {"credHelpers": {"r.example": name}, "auths": {"r.example": AUTH}})
    assert await file.find("r.example") == LOGIN
    with pytest.raises(RegistryDeniedError, match=f"docker-credential-{name}"):
        await written(tmp_path / "d.json", {"credHelpers": {"r.example": name}}).find("r.example")


@pytest.mark.usefixtures("helper")
async def test_files_are_read_in_order(tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    written(first, {"credsStore": "foreign"})
    written(second, {"auths": {"r.example": AUTH}})
    settings = {"own.example": RegistryConfig.model_validate({"username": "u", "password": "p"})}
    store = ConfiguredCredentials(settings, [tmp_path / "none.json", first, second], CommandRunner())
    assert await store.find("r.example") == LOGIN
    assert await store.find("own.example") == Credentials("u", "p")
    with pytest.raises(RegistryDeniedError, match="foreign"):
        await store.find("other.example")


def test_files_of_docker_and_podman_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("DOCKER_CONFIG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "REGISTRY_AUTH_FILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    docker, podman = tmp_path / ".docker" / "config.json", tmp_path / ".config" / "containers" / "auth.json"
    assert default_credential_files() == (docker, podman)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", "/etc/auth.json")
    monkeypatch.setenv("DOCKER_CONFIG", "/etc/docker")
    found = [str(path) for path in default_credential_files()]
    assert found == ["/etc/auth.json", "/etc/docker/config.json", "/run/user/1/containers/auth.json", str(podman)]


@pytest.mark.registry
@pytest.mark.parametrize("server", ["{host}", "{host}/ci", "{host}/ci/debian"])
async def test_login_of_skopeo_is_used(
    server: str, password_registry: RegistryProcess, make_service: MakeService, disk: Path, tmp_path: Path
) -> None:
    """skopeo writes the files of podman, here against a real registry."""
    host, name = password_registry.host, server.format(host=password_registry.host)
    arguments = f"login --tls-verify=false --username {USER} --password {PASSWORD} {name}".split()
    file = tmp_path / "docker-config.json"
    process = await asyncio.create_subprocess_exec(
        "skopeo", *arguments, "--authfile", str(file), stdout=asyncio.subprocess.DEVNULL
    )
    assert await asyncio.wait_for(process.wait(), 30) == 0
    assert name in json.loads(file.read_text())["auths"]
    images = await make_service(host)
    digest = await images.push(disk, f"{host}/ci/debian:v1", hardware=Hardware())
    assert await images.resolve(f"{host}/ci/debian:v1") == digest
    if server != "{host}":
        with pytest.raises(RegistryDeniedError, match="anonymous"):
            await images.resolve(f"{host}/other/debian:v1")

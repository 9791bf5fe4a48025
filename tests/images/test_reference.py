from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.images.errors import BadReferenceError
from agent.images.reference import LayoutName, RegistryName, is_digest, parse_reference

DIGEST = "sha256:" + "0123456789abcdef" * 4

words = st.from_regex(r"[a-z0-9]{1,5}((\.|_|__|-{1,4})[a-z0-9]{1,5}){0,2}", fullmatch=True)
namespaces = st.lists(words, min_size=1, max_size=3).map("/".join)
hosts = st.sampled_from(["localhost", "127.0.0.1", "[::1]", "registry.example", "Ghcr.IO", "a-b.c"])
ports = st.one_of(st.just(""), st.integers(1, 65535).map(lambda port: f":{port}"))
tags = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,20}", fullmatch=True)
digests = st.text("0123456789abcdef", min_size=64, max_size=64).map(lambda text: f"sha256:{text}")
targets = st.one_of(tags.map(lambda tag: f":{tag}"), digests.map(lambda digest: f"@{digest}"))
paths = st.lists(st.from_regex(r"[A-Za-z0-9_.:-]{1,6}", fullmatch=True), min_size=1, max_size=3).map("/".join)


@given(hosts, ports, namespaces, targets)
def test_registry_reference_round_trips(host: str, port: str, namespace: str, target: str) -> None:
    text = f"{host}{port}/{namespace}{target}"
    parsed = parse_reference(text)
    assert parsed.name == RegistryName(f"{host}{port}", namespace)
    assert parsed.target == target[1:]
    assert str(parsed) == text
    assert parse_reference(str(parsed)) == parsed


@given(hosts, ports, namespaces, tags, digests)
def test_digest_decides_and_the_tag_is_shown(host: str, port: str, namespace: str, tag: str, digest: str) -> None:
    text = f"{host}{port}/{namespace}:{tag}@{digest}"
    parsed = parse_reference(text)
    assert (parsed.tag, parsed.digest, parsed.target) == (tag, digest, digest)
    assert str(parsed) == text
    assert parse_reference(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("debian", "docker.io/library/debian:latest"),
        ("debian:v1", "docker.io/library/debian:v1"),
        ("docker.io/debian", "docker.io/library/debian:latest"),
        ("index.docker.io/debian:v1", "docker.io/library/debian:v1"),
        ("team/debian:v1", "docker.io/team/debian:v1"),
        ("docker.io/team/debian", "docker.io/team/debian:latest"),
        ("registry/team/debian", "docker.io/registry/team/debian:latest"),
        (f"debian@{DIGEST}", f"docker.io/library/debian@{DIGEST}"),
        (f"debian:v1@{DIGEST}", f"docker.io/library/debian:v1@{DIGEST}"),
        ("localhost/debian", "localhost/debian:latest"),
        ("registry:5000/debian", "registry:5000/debian:latest"),
        ("Registry/debian", "Registry/debian:latest"),
        ("registry.lan/a__b--c/d:_x-", "registry.lan/a__b--c/d:_x-"),
    ],
)
def test_name_goes_where_docker_goes(text: str, full: str) -> None:
    assert str(parse_reference(text)) == full


@given(paths.filter(lambda path: ".." not in path.split("/")), targets)
def test_layout_reference_round_trips(path: str, target: str) -> None:
    parsed = parse_reference(f"oci-layout:/{path}{target}")
    assert parsed.name == LayoutName(Path(f"/{path}"))
    assert parse_reference(str(parsed)) == parsed


def test_path_of_a_layout_may_have_a_colon_before_a_digest() -> None:
    parsed = parse_reference(f"oci-layout:/srv/a:b@{DIGEST}")
    assert (parsed.name, parsed.tag, parsed.digest) == (LayoutName(Path("/srv/a:b")), None, DIGEST)


@given(st.text(max_size=80))
def test_any_text_is_parsed_or_rejected(text: str) -> None:
    with suppress(BadReferenceError):
        parsed = parse_reference(text)
        assert parse_reference(str(parsed)) == parsed


@pytest.mark.parametrize("text", ["host.example/a/b", "oci-layout:/srv/images"])
def test_default_tag_is_latest(text: str) -> None:
    assert parse_reference(text).tag == "latest"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("host.example/", "not a repository name"),
        ("host.example/UPPER:v1", "not a repository name"),
        ("host.example/../etc:v1", "not a repository name"),
        ("host.example/a//b:v1", "not a repository name"),
        ("host.example/a:", "not a tag"),
        (f"host.example/a:{'x' * 129}", "not a tag"),
        ("host.example/a@sha256:12", "not a digest"),
        (f"host.example/a@{DIGEST.upper()}", "not a digest"),
        ("host.example:0/a:v1", "not a host name"),
        ("host.example:99999/a:v1", "not a host name"),
        ("-host.example/a:v1", "not a host name"),
        ("-host/a:v1", "not a repository name"),
        ("host.example/a___b:v1", "not a repository name"),
        ("host.example/a._b:v1", "not a repository name"),
        ("host.example/a:-v1", "not a tag"),
        ("host.example/a:.v1", "not a tag"),
        (f"host.example/a:@{DIGEST}", "not a tag"),
        ("DEBIAN", "not a repository name"),
        ("https://host.example/a:v1", "not a host name"),
        ("oci-layout:relative/path:v1", "not absolute"),
        ("oci-layout:/srv/../etc:v1", "`..`"),
        ("host.example/a b:v1", "not a repository name"),
        ("x" * 2000, "longer"),
    ],
)
def test_error_names_the_invalid_part(text: str, says: str) -> None:
    with pytest.raises(BadReferenceError) as raised:
        parse_reference(text)
    assert says in raised.value.message
    assert raised.value.remedy


def test_digest_must_be_canonical() -> None:
    assert is_digest(DIGEST)
    assert not is_digest(f"{DIGEST}\n")
    assert not is_digest(DIGEST.replace("sha256", "sha512"))

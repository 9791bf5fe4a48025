from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from agent.cli.image import app
from agent.cli.main import run
from tests.images.disks import sha256_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "data"


@dataclass(frozen=True)
class Ended:
    exit_code: int
    stdout: str
    stderr: str


def hearth_image(*arguments: str | Path, here: Path) -> Ended:
    config = here.parent / "hearth.toml"
    config.write_text(f'data_dir = "{here}"\n')
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run(["image", *map(str, arguments), "--config", str(config)])
    return Ended(code, out.getvalue(), err.getvalue())


def test_image_is_pushed_pulled_listed_shown_and_removed(disk: Path, here: Path) -> None:
    reference = f"oci-layout:{here.parent}/layout:v1"
    pushed = hearth_image("push", disk, reference, "--memory", "512", "--json", here=here)
    digest = json.loads(pushed.stdout)["digest"]
    assert digest.startswith("sha256:")

    pulled = hearth_image("pull", reference, here=here)
    assert (pulled.exit_code, pulled.stdout, pulled.stderr) == (0, f"{digest}\n", "")

    listed = json.loads(hearth_image("list", "--json", here=here).stdout)
    assert listed["source"] == "store"
    (image,) = listed["images"]
    assert (image["digest"], image["references"]) == (digest, [reference])
    folder = here / "images" / digest.replace(":", "-")
    assert sha256_of(folder / "disk.img") == sha256_of(disk)

    seen = json.loads(hearth_image("show", reference, "--json", here=here).stdout)
    assert (seen["digest"], seen["os"], seen["disk_bytes"], seen["local"]) == (digest, "linux", 8 << 20, True)

    assert hearth_image("rm", reference, here=here).stdout == f"{digest}\n"
    assert hearth_image("list", here=here).stdout == "no images\n"
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["pull", "DEBIAN"], 2, "not a repository name"),
        (["rm", "debian:v1"], 4, "hearth image list"),
        (["push", "missing.img", "oci-layout:/tmp/x:v1"], 2, "reading the disk missing.img failed"),
        (["rm", "sha256:" + "0" * 64], 4, "not on this host"),
        (["rm", "host.example/a:v1"], 4, "hearth image list"),
        (["show", "oci-layout:/nonexistent:v1"], 4, "not an OCI image layout"),
        (["pull", "oci-layout:/nonexistent:v1"], 4, "push an image to it first"),
    ],
)
def test_failure_is_reported_on_stderr_and_by_exit_code(arguments: list[str], code: int, says: str, here: Path) -> None:
    result = hearth_image(*arguments, here=here)
    assert result.exit_code == code
    assert says in result.stderr
    assert result.stdout == ""


def test_help_shows_an_example_of_every_command() -> None:
    for command in ("push", "pull", "list", "rm", "show"):
        assert f"Example: hearth image {command}" in CliRunner().invoke(app, [command, "--help"]).stdout

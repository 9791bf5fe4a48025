"""scripts/install.sh: several versions, an atomic switch of `current`, and no repeated work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SCRIPT = REPOSITORY / "scripts" / "install.sh"


def install(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=170, cwd="/"
    )  # fmt: skip


def output_of(*command: object) -> str:
    argv = [str(part) for part in command]
    return subprocess.run(argv, capture_output=True, text=True, check=True, cwd="/").stdout.strip()


def test_dry_run_prints_its_steps_and_changes_nothing(tmp_path: Path) -> None:
    prefix = tmp_path / "opt"
    done = install("--prefix", prefix, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "pip install --require-hashes of" in done.stderr
    assert f"ready: {prefix}/current/bin/hearth" in done.stderr
    assert not prefix.exists()


def test_installed_version_is_activated_and_old_ones_removed(tmp_path: Path) -> None:
    """The slow installation is skipped: the version exists already, as after an earlier run."""
    release = tmp_path / "hearth-9.1.0-py3-none-any.whl"
    release.write_bytes(b"a wheel")
    planned = install("--prefix", tmp_path, "--from", release, "--dry-run").stderr
    version = next(line.split()[2] for line in planned.splitlines() if "installing" in line)
    assert version.startswith("9.1.0-")
    versions = tmp_path / "versions"
    for age, name in enumerate([version, "0.9", "0.8", "0.7", "0.6"]):
        (versions / name / "bin").mkdir(parents=True)
        (versions / name / "complete").touch()
        os.utime(versions / name, (1e9 - age, 1e9 - age))
    (tmp_path / "current").symlink_to("versions/0.9")

    done = install("--prefix", tmp_path, "--from", release)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "current").readlink() == Path("versions") / version
    assert {path.name for path in versions.iterdir()} == {version, "0.9", "0.8"}
    assert {path.name for path in tmp_path.iterdir()} == {"versions", "current", release.name}
    assert f"current is {version}" in install("--prefix", tmp_path, "--from", release).stderr


@pytest.mark.parametrize(
    ("arguments", "message"), [(("--from", "/nothing.whl"), "does not exist"), (("--wrong",), "--prefix")]
)
def test_wrong_arguments_are_a_usage_error(arguments: tuple[str, ...], message: str) -> None:
    done = install(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.skipif(not os.environ.get("HEARTH_SLOW"), reason="fetches every dependency; set HEARTH_SLOW=1")
def test_checkout_install_is_complete_after_an_interruption(tmp_path: Path) -> None:
    done = install("--prefix", tmp_path)
    assert done.returncode == 0, done.stderr
    hearth = tmp_path / "current" / "bin" / "hearth"
    (version,) = (tmp_path / "versions").iterdir()
    assert subprocess.run([hearth, "--version"], capture_output=True, text=True, check=True).stdout.startswith(
        "hearth "
    )
    program = "from agent.host.service import plist; print(plist.templates()); print(plist.newsyslog.__module__)"
    python = version / "bin" / "python"
    output = subprocess.run(
        [python, "-c", program], capture_output=True, text=True, check=True, cwd="/"
    ).stdout.splitlines()
    assert output[0].startswith(str(version))
    assert output[0].endswith("/agent/launchd")

    build = (
        sys.executable,
        "-m",
        "pip",
        "-q",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        REPOSITORY,
    )
    output_of(*build)
    (wheel,) = tmp_path.glob("hearth-*.whl")
    released = install("--prefix", tmp_path / "other", "--from", wheel)
    assert released.returncode == 0, released.stderr
    assert output_of(tmp_path / "other" / "current" / "bin" / "hearth", "--version").startswith("hearth ")

    (version / "complete").unlink()
    (version / "lib").rename(version / "gone")
    again = install("--prefix", tmp_path)
    assert again.returncode == 0, again.stderr
    assert not (version / "gone").exists()
    assert "is already installed" in install("--prefix", tmp_path).stderr

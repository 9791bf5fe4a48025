"""The plists of the service: their keys and variables, without secrets, and documented."""

from __future__ import annotations

import plistlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from agent.daemon import STOP_LIMIT_S
from agent.host.service import plist
from agent.host.service.errors import ServiceError, ServiceRefusedError
from agent.host.service.launchd_service import START_TIMEOUT_S, UNLOAD_TIMEOUT_S
from agent.host.service.target import LABEL, ServiceKind, Target, daemon_target, user_target
from agent.host.user_accounts import Account

REPOSITORY = Path(__file__).parents[3]
PROGRAM, CONFIG = Path("/opt/hearth/current/bin/hearth"), Path("/etc/hearth/hearth.toml")
USER = user_target(Account("ci", 501, 20, Path("/Users/ci")))


def job(target: Target, **environment: str) -> dict[str, Any]:
    written = plist.render(target, program=PROGRAM, config=CONFIG, environment=environment)
    return dict(plistlib.loads(written))


@pytest.mark.parametrize("target", [daemon_target(), USER], ids=lambda target: target.kind)
def test_job_is_kept_alive_and_abandons_its_vms(target: Target) -> None:
    made = job(target)
    assert made["Label"] == LABEL
    assert made["ProgramArguments"] == [str(PROGRAM), "run", "--config", str(CONFIG)]
    assert made["KeepAlive"] is made["RunAtLoad"] is made["AbandonProcessGroup"] is True
    assert STOP_LIMIT_S < made["ExitTimeOut"] < UNLOAD_TIMEOUT_S
    assert made["ThrottleInterval"] < START_TIMEOUT_S
    assert made["ProcessType"] == "Interactive"
    assert made["Umask"] == 0o077
    assert made["SoftResourceLimits"]["NumberOfFiles"] == made["HardResourceLimits"]["NumberOfFiles"] == 65536
    assert made["StandardOutPath"] == f"{target.logs}/launchd.out.log"
    assert made["StandardErrorPath"] == f"{target.logs}/launchd.err.log"
    environment = made["EnvironmentVariables"]
    assert environment["PATH"].split(":")[:3] == ["/opt/homebrew/bin", "/usr/local/bin", "/usr/bin"]
    assert environment["TART_NO_AUTO_PRUNE"] == "1"
    assert environment["HOME"] == str(target.account.home)


def test_daemon_and_user_jobs_differ_in_owner_and_session() -> None:
    system, session = job(daemon_target()), job(USER)
    assert (system["UserName"], system["LimitLoadToSessionType"]) == ("root", "System")
    assert "UserName" not in session
    assert session["LimitLoadToSessionType"] == "Aqua"
    assert system.keys() - session.keys() == {"UserName", "GroupName"}
    assert (daemon_target().service, USER.service) == (f"system/{LABEL}", f"gui/501/{LABEL}")
    assert USER.plist == Path(f"/Users/ci/Library/LaunchAgents/{LABEL}.plist")


def test_plist_has_added_variables_but_no_secrets() -> None:
    assert job(USER, TART_HOME="/Volumes/VMs")["EnvironmentVariables"]["TART_HOME"] == "/Volumes/VMs"
    for name, value in {
        "HEARTH_TOKEN": "x", "registry_password": "x", "AWS_SECRET_ACCESS_KEY": "x", "API_KEY": "x",
        "HTTPS_PROXY": "http://me:pw@proxy", "CERT": "-----BEGIN RSA PRIVATE KEY-----",
    }.items():  # fmt: skip
        with pytest.raises(ServiceRefusedError, match="every user of this Mac can read a plist"):
            job(USER, **{name: value})
    with pytest.raises(ServiceRefusedError, match="not a valid name of a variable"):
        job(USER, **{"A B": "x"})


def test_broken_template_error_names_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "daemon.plist").write_text("<plist><dict>")
    monkeypatch.setattr(plist, "templates", lambda: tmp_path)
    with pytest.raises(ServiceError, match=f"template {tmp_path}/daemon.plist cannot be used"):
        job(daemon_target())


def test_newsyslog_rotates_the_output_of_launchd() -> None:
    rules = [line.split() for line in plist.newsyslog(USER).splitlines() if not line.startswith("#")]
    assert [rule[0] for rule in rules] == [f"{USER.logs}/launchd.{stream}.log" for stream in ("out", "err")]
    for rule in rules:
        assert rule[1:] == ["ci:staff", "640", "4", "1024", "*", "N"]
    assert " root:wheel " in plist.newsyslog(daemon_target())


def test_each_plist_key_is_documented() -> None:
    page = (REPOSITORY / "docs" / "launchd.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([A-Z][A-Za-z]+|[A-Z_]+)` \|", page, re.MULTILINE))
    jobs = [job(daemon_target()), job(USER)]
    assert documented == {key for made in jobs for key in (*made, *made["EnvironmentVariables"])}


def test_wheel_contains_the_plist_templates() -> None:
    wheel = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"launchd": "agent/launchd"}
    assert {path.name for path in plist.templates().iterdir()} == {
        *(f"{kind}.plist" for kind in ServiceKind),
        "newsyslog.conf",
    }

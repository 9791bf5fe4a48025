"""The agent's configuration and the assignment document: two TOML files, validated to the last key.

Errors name the file, the line or key, and the way out. Everything has a default that works; unknown keys are refused,
because a misspelt limit is worse than a missing one. `hearth config check` runs the same code as the agent.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from agent.domain.errors import Blame, HearthError
from agent.domain.model import PoolSpec, ProbeKind, ProbeSpec, VmSize
from agent.domain.names import POOL_PATTERN

Seconds = Annotated[float, Field(gt=0, le=7 * 86400, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=1, le=65535)]
PoolName = Annotated[str, Field(pattern=f"^{POOL_PATTERN}$")]


class ConfigError(HearthError):
    """A configuration or assignment file that cannot be used as it stands."""

    code = "bad-configuration"
    blame: ClassVar[Blame] = Blame.REQUEST


class Section(BaseModel):
    """Base of every table of both files: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class HostConfig(Section):
    """`[host]`: what VMs may use of this machine."""

    slots: int = Field(default=2, ge=1, le=1000)
    """VMs that may run at once. Apple allows 2 macOS VMs on one Mac."""
    cpus: float | None = Field(default=None, gt=0)
    """Processors VMs may use together; default: twice what the machine has, since build jobs seldom peak together."""
    memory_mib: int | None = Field(default=None, gt=0)
    """Memory VMs may use together; default: the machine's less `memory_reserve_mib`."""
    memory_reserve_mib: int = Field(default=2048, ge=0)
    disk_reserve_mib: int = Field(default=2048, ge=0)
    """Free space kept on the data volume: below it no VM is created and no image pulled."""


class QemuConfig(Section):
    """`[hypervisor.qemu]`."""

    accelerator: Literal["auto", "hvf", "kvm", "tcg"] = "auto"
    """`auto` proves each by a trial boot and remembers the first that works."""
    binary: str | None = None
    """Path of qemu-system-*; default: the one for this machine's architecture on PATH."""


class HypervisorConfig(Section):
    """`[hypervisor]`."""

    kind: Literal["auto", "qemu", "simulated"] = "auto"
    qemu: QemuConfig = QemuConfig()


class RegistryConfig(Section):
    """`[images.registries."host:port"]`: how to speak to one registry."""

    insecure: bool = False
    """Speak plain http. Never guessed: a registry not listed as insecure is spoken to by https only."""
    username: str | None = None
    password: SecretStr | None = None
    ca_file: Path | None = None
    """Certificates (PEM) to trust for this registry, beside the system's."""
    mirrors: tuple[str, ...] = ()
    """Registries, `host[:port]`, that hold the same repositories: asked first, in this order."""

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password belong together: set both or neither")
        return self


class ImagesConfig(Section):
    """`[images]`."""

    streams: int = Field(default=8, ge=1, le=64)
    """Parallel downloads of one pull."""
    resolve_period_s: Seconds = 300.0
    """How often a tag is asked for anew, to notice that it moved."""
    budget_mib: int | None = Field(default=None, gt=0)
    """The most that images may take on the disk together; default: all but the reserve."""
    bandwidth_mib_per_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """The most that all pulls may take of the network together; default: no limit."""
    registries: dict[str, RegistryConfig] = {}


class TlsConfig(Section):
    """`[api.tls]`: the certificate of the TCP listener, as PEM files. Renewed files are taken up without a restart."""

    certificate: Path
    key: Path
    client_ca: Path | None = None
    """Clients must show a certificate of this authority."""


class ApiConfig(Section):
    """`[api]`: where the agent listens. Whoever listens off loopback must ask for tokens and speak TLS."""

    host: str = Field(default="127.0.0.1", min_length=1)
    auth: Literal["open", "token"] = "open"
    """Whether TCP callers must show a token. On the Unix socket the file's permissions are the login."""
    tls: TlsConfig | None = None
    port: int = Field(default=7420, ge=0, le=65535)
    """0 picks a free port; it is written to `<data_dir>/api.port`."""
    socket: Path | None = None
    """Unix socket for the command line; default: `<data_dir>/hearth.sock`."""

    @model_validator(mode="after")
    def _safe_off_loopback(self) -> Self:
        if self.host not in ("127.0.0.1", "::1", "localhost") and (self.auth == "open" or self.tls is None):
            raise ValueError(
                f'others can reach {self.host}: set auth = "token" and certificate and key under [api.tls], '
                "or listen on 127.0.0.1"
            )
        return self


class AssignmentConfig(Section):
    """`[assignment]`: the one source of the desired state."""

    source: Literal["file", "api"] = "file"
    file: Path | None = None
    """Default: `assignment.toml` beside the configuration file."""


class AgentConfig(Section):
    """`[agent]`: the agent's own process."""

    watchdog_s: float = Field(default=60.0, ge=10, le=3600)
    """A loop that makes no turn for so long is stuck: the agent writes down where and ends with exit code 70."""


class EvidenceConfig(Section):
    """`[evidence]`: what is kept of failed VMs."""

    max_mib: int = Field(default=256, ge=1)
    """All evidence together; the oldest makes room for new."""
    max_vm_mib: int = Field(default=16, ge=1)
    """Evidence of one VM; its largest files go first."""


class LogConfig(Section):
    """`[log]`."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    max_mib: int = Field(default=32, ge=1)
    """Size at which the log is rotated."""
    keep: int = Field(default=5, ge=1)
    """Rotated files kept."""


class Config(Section):
    """The whole configuration file. `data_dir` holds everything the agent writes."""

    data_dir: Path = Path("/var/lib/hearth")
    host: HostConfig = HostConfig()
    hypervisor: HypervisorConfig = HypervisorConfig()
    images: ImagesConfig = ImagesConfig()
    api: ApiConfig = ApiConfig()
    assignment: AssignmentConfig = AssignmentConfig()
    agent: AgentConfig = AgentConfig()
    evidence: EvidenceConfig = EvidenceConfig()
    log: LogConfig = LogConfig()

    @property
    def assignment_path(self) -> Path:
        """The assignment file, where that is the source."""
        return self.assignment.file or Path("assignment.toml")

    @property
    def socket_path(self) -> Path:
        """The Unix socket the agent listens on."""
        return self.api.socket or self.data_dir / "hearth.sock"


class ProbeDocument(Section):
    """`[[pools.NAME.probes]]`: one health question."""

    kind: ProbeKind
    port: Port | None = None
    path: str = Field(default="/", pattern="^/")
    status: int = Field(default=200, ge=100, le=599)
    command: tuple[str, ...] = ()
    exit_code: int = Field(default=0, ge=0, le=255)
    period_s: Seconds = 10.0
    timeout_s: Seconds = 5.0
    failures: int = Field(default=3, ge=1, le=100)

    @model_validator(mode="after")
    def _has_what_its_kind_asks(self) -> Self:
        needs_port = self.kind in (ProbeKind.TCP, ProbeKind.HTTP)
        if needs_port and self.port is None:
            raise ValueError(f"a probe of kind {self.kind} needs a port")
        if not needs_port and self.port is not None:
            raise ValueError(f"a probe of kind {self.kind} takes no port")
        if (self.kind is ProbeKind.EXEC) != bool(self.command):
            raise ValueError("a command belongs to a probe of kind exec, and to no other")
        return self

    def spec(self) -> ProbeSpec:
        """Return it as the domain's value."""
        return ProbeSpec(
            kind=self.kind,
            port=self.port or 0,
            path=self.path,
            status=self.status,
            argv=self.command,
            exit_code=self.exit_code,
            period_s=self.period_s,
            timeout_s=self.timeout_s,
            failures=self.failures,
        )


class PoolDocument(Section):
    """`[pools.NAME]`: one pool of the assignment."""

    image: str = Field(min_length=1, max_length=1024)
    warm: int = Field(default=1, ge=0, le=1000)
    max: int | None = Field(default=None, ge=1, le=1000)
    min_ready: int | None = Field(default=None, ge=0)
    priority: int = Field(default=0, ge=-1000, le=1000)
    cpus: int = Field(default=2, ge=1, le=512)
    memory_mib: int = Field(default=4096, ge=64)
    ports: tuple[Port, ...] = (22,)
    probes: tuple[ProbeDocument, ...] = (ProbeDocument(kind=ProbeKind.AGENT),)
    startup_period_s: Seconds = 0.25
    startup_deadline_s: Seconds = 300.0
    stop_grace_s: float = Field(default=10.0, ge=0, le=3600)
    lease_ttl_s: Seconds = 3600.0
    lease_max_ttl_s: Seconds = 86400.0
    canary_attempts: int = Field(default=2, ge=1, le=10)
    standby: int = Field(default=0, ge=0, le=1000)
    fan_out: bool = True
    max_age_s: Seconds | None = None
    max_idle_s: Seconds | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.max is not None and self.max < self.warm:
            raise ValueError(f"max is {self.max} but warm is {self.warm}: raise max or lower warm")
        if self.min_ready is not None and self.min_ready > self.warm:
            raise ValueError(f"min_ready is {self.min_ready} but warm is {self.warm}: it can never be met")
        if self.lease_ttl_s > self.lease_max_ttl_s:
            raise ValueError("lease_ttl_s is above lease_max_ttl_s")
        missing = {probe.port for probe in self.probes if probe.port is not None} - set(self.ports)
        if missing:
            raise ValueError(f"probes use the ports {sorted(missing)}: add them to ports")
        return self

    def spec(self, name: str) -> PoolSpec:
        """Return it as the domain's value. `min_ready` defaults to 1 where more than one VM is kept warm."""
        min_ready = self.min_ready if self.min_ready is not None else min(1, max(0, self.warm - 1))
        return PoolSpec(
            name=name,
            image=self.image,
            warm=self.warm,
            max=self.max or 0,
            min_ready=min_ready,
            priority=self.priority,
            size=VmSize(self.cpus, self.memory_mib),
            ports=self.ports,
            probes=tuple(probe.spec() for probe in self.probes),
            startup_period_s=self.startup_period_s,
            startup_deadline_s=self.startup_deadline_s,
            stop_grace_s=self.stop_grace_s,
            lease_ttl_s=self.lease_ttl_s,
            lease_max_ttl_s=self.lease_max_ttl_s,
            canary_attempts=self.canary_attempts,
            standby=self.standby,
            fan_out=self.fan_out,
            max_age_s=self.max_age_s,
            max_idle_s=self.max_idle_s,
        )


class Assignment(Section):
    """The desired state: the pools this host must serve. The same document in TOML (file) and JSON (API)."""

    pools: dict[PoolName, PoolDocument] = {}

    def specs(self) -> tuple[PoolSpec, ...]:
        """Return the pools as the domain's values, by name."""
        return tuple(self.pools[name].spec(name) for name in sorted(self.pools))


_Document = TypeVar("_Document", bound=Section)


def load_config(path: Path) -> Config:
    """Read and validate the configuration file. Relative paths in it are relative to its folder."""
    config = _load(path, Config)
    here = path.resolve().parent
    assignment_file = here / (config.assignment.file or "assignment.toml")
    return config.model_copy(
        update={
            "data_dir": here / config.data_dir,
            "api": _api_in(config.api, here),
            "assignment": config.assignment.model_copy(update={"file": assignment_file}),
        }
    )


def _api_in(api: ApiConfig, here: Path) -> ApiConfig:
    """Return the section with its paths made absolute."""
    files = api.tls.model_dump(exclude_none=True) if api.tls else {}
    tls = TlsConfig(**{name: here / file for name, file in files.items()}) if files else None
    return api.model_copy(update={"socket": here / api.socket if api.socket else None, "tls": tls})


def load_assignment(path: Path) -> Assignment:
    """Read and validate an assignment file."""
    return _load(path, Assignment)


def parse_assignment(document: object, *, source: str) -> Assignment:
    """Validate an assignment that came as data. `source` names where from in the error."""
    return _validate(document, Assignment, source)


def _load(path: Path, kind: type[_Document]) -> _Document:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist", remedy="create it or name another file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", remedy="check its permissions and encoding") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}", remedy="mend that line") from error
    return _validate(document, kind, str(path))


def _validate(document: object, kind: type[_Document], source: str) -> _Document:
    try:
        # As JSON and strictly: `slots = true` and `warm = "2"` are mistakes and not numbers.
        return kind.model_validate_json(json.dumps(document, default=str), strict=True)
    except ValidationError as error:
        lines = [f"{_key(item['loc'])}: {_reason(item)}" for item in error.errors(include_input=False)]
        raise ConfigError(f"{source}: " + "; ".join(lines), remedy="see docs/configuration.md for every key") from None


def _key(location: tuple[int | str, ...]) -> str:
    """Render a pydantic location the way TOML writes the key: `pools.small.probes[0].port`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".") or "document"


def _reason(item: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails differs by version
    if item["type"] == "extra_forbidden":
        return "unknown key"
    return str(item["msg"]).removeprefix("Value error, ")

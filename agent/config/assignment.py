"""The assignment: the pools that a host must serve."""

from __future__ import annotations

from typing import Final, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from agent.config.base import PoolName, Port, Seconds, Section
from agent.domain.model import PoolSpec, ProbeKind, ProbeSpec, VmSize

MAX_POOLS: Final = 256
"""Most pools of one host. A plan for them takes about 20 ms of the event loop; ten thousand stopped it for seconds."""
STORED: Final = "stored"
"""The validation context of an assignment from the journal: an earlier agent may have accepted more pools."""


class ProbeDocument(Section):
    """`[[pools.NAME.probes]]`: one health probe."""

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
    def _match_keys_to_kind(self) -> Self:
        needs_port = self.kind in (ProbeKind.TCP, ProbeKind.HTTP)
        if needs_port and self.port is None:
            raise ValueError(f"a probe of kind {self.kind} needs a port")
        if not needs_port and self.port is not None:
            raise ValueError(f"a probe of kind {self.kind} has no port: remove it")
        if (self.kind is ProbeKind.EXEC) != bool(self.command):
            raise ValueError("a probe of kind exec needs a command, and only this kind has one")
        return self

    def spec(self) -> ProbeSpec:
        """Return the probe as a value of the domain."""
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
    soak_s: float | None = Field(default=None, ge=0, le=86400)
    rollback_after: int = Field(default=3, ge=1, le=1000)
    standby: int = Field(default=0, ge=0, le=1000)
    use_templates: bool = True
    max_age_s: Seconds | None = None
    max_idle_s: Seconds | None = None

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.max is not None and self.max < self.warm:
            raise ValueError(f"max is {self.max} but warm is {self.warm}: raise max or lower warm")
        if self.min_ready is not None and self.min_ready > self.warm:
            raise ValueError(f"min_ready is {self.min_ready} but warm is {self.warm}: raise warm or lower min_ready")
        if self.lease_ttl_s > self.lease_max_ttl_s:
            raise ValueError("lease_ttl_s is above lease_max_ttl_s: lower it or raise lease_max_ttl_s")
        missing = {probe.port for probe in self.probes if probe.port is not None} - set(self.ports)
        if missing:
            raise ValueError(f"probes use the ports {sorted(missing)}: add them to ports")
        return self

    def spec(self, name: str) -> PoolSpec:
        """Return the pool as a value of the domain. `min_ready` defaults to 1 if `warm` is above 1, otherwise to 0."""
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
            soak_s=self.soak_s,
            rollback_after=self.rollback_after,
            standby=self.standby,
            use_templates=self.use_templates,
            max_age_s=self.max_age_s,
            max_idle_s=self.max_idle_s,
        )


class Assignment(Section):
    """The desired state: the pools that this host must serve. The same document in TOML (file) and JSON (API)."""

    pools: dict[PoolName, PoolDocument] = Field(default={})

    @field_validator("pools")
    @classmethod
    def _limit_pools(cls, pools: dict[str, PoolDocument], info: ValidationInfo) -> dict[str, PoolDocument]:
        """Refuse more pools than a host can plan for. An assignment in the journal was accepted."""
        if len(pools) > MAX_POOLS and info.context != STORED:
            raise ValueError(f"{len(pools)} pools are more than the {MAX_POOLS} of one host: divide them over hosts")
        return pools

    def specs(self) -> tuple[PoolSpec, ...]:
        """Return the pools as values of the domain, sorted by name."""
        return tuple(self.pools[name].spec(name) for name in sorted(self.pools))

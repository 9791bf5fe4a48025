"""`[api]`: the listeners of the agent, and access to them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from agent.config.base import Section


class TlsConfig(Section):
    """`[api.tls]`: the certificate of the TCP listener, as PEM files. Renewed files are loaded without a restart."""

    certificate: Path
    key: Path
    client_ca: Path | None = None
    """Certificate authority (PEM): clients must present a certificate that it issued."""


class ApiConfig(Section):
    """`[api]`: the listeners of the agent. An address that is not loopback requires tokens and TLS."""

    host: str = Field(default="127.0.0.1", min_length=1)
    auth: Literal["read", "token", "open"] = "read"
    """Permissions of TCP callers without a token: `read`, none (`token`), or all (`open`). A token always gives its
    role. On the Unix socket the permissions of the file control the access."""
    rate_per_s: float = Field(default=500.0, gt=0, allow_inf_nan=False)
    """Sustained limit of requests per second for one TCP caller. The Unix socket has no limit."""
    rate_burst: int = Field(default=2000, ge=1)
    """Requests that one TCP caller can make without delay after a pause."""
    tls: TlsConfig | None = None
    port: int = Field(default=7420, ge=0, le=65535)
    """TCP port; 0 selects a free port. The agent writes it to `<data_dir>/api.port`."""
    socket: Path | None = None
    """Unix socket for the command line. Default: `<data_dir>/hearth.sock`."""

    @model_validator(mode="after")
    def _require_token_and_tls_off_loopback(self) -> Self:
        if self.host not in ("127.0.0.1", "::1", "localhost") and (self.auth != "token" or self.tls is None):
            raise ValueError(
                f'other machines can connect to {self.host}: set auth = "token", and certificate and key in [api.tls], '
                "or listen on 127.0.0.1"
            )
        return self

"""`[api]`: where the agent listens, and who may speak to it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from agent.config.base import Section


class TlsConfig(Section):
    """`[api.tls]`: the certificate of the TCP listener, as PEM files. Renewed files are taken up without a restart."""

    certificate: Path
    key: Path
    client_ca: Path | None = None
    """Clients must show a certificate of this authority."""


class ApiConfig(Section):
    """`[api]`: where the agent listens. Whoever listens off loopback must ask for tokens and speak TLS."""

    host: str = Field(default="127.0.0.1", min_length=1)
    auth: Literal["read", "token", "open"] = "read"
    """What TCP callers without a token may do: `read`, nothing (`token`), or everything (`open`). A token always gives
    its role. On the Unix socket the file's permissions are the login."""
    rate_per_s: float = Field(default=500.0, gt=0, allow_inf_nan=False)
    """Requests a second that one TCP caller may make in the long run. The Unix socket is not limited."""
    rate_burst: int = Field(default=2000, ge=1)
    """Requests that one TCP caller may make at once after a pause."""
    tls: TlsConfig | None = None
    port: int = Field(default=7420, ge=0, le=65535)
    """0 picks a free port; it is written to `<data_dir>/api.port`."""
    socket: Path | None = None
    """Unix socket for the command line; default: `<data_dir>/hearth.sock`."""

    @model_validator(mode="after")
    def _safe_off_loopback(self) -> Self:
        if self.host not in ("127.0.0.1", "::1", "localhost") and (self.auth != "token" or self.tls is None):
            raise ValueError(
                f'others can reach {self.host}: set auth = "token" and certificate and key under [api.tls], '
                "or listen on 127.0.0.1"
            )
        return self

"""Real certificates, made with openssl."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from agent.config import TlsConfig

if TYPE_CHECKING:
    from pathlib import Path


def openssl(*arguments: str, folder: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=30)


def authority(folder: Path, name: str = "ca") -> Path:
    """Make an authority and return its certificate."""
    openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
        "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem", folder=folder,
    )  # fmt: skip
    return folder / f"{name}.pem"


def certificate(folder: Path, name: str, *, ca: str = "ca", subject: str = "") -> TlsConfig:
    """Make a certificate of an authority for 127.0.0.1."""
    openssl(
        "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={subject or name}",
        "-keyout", f"{name}.key", "-out", f"{name}.csr", folder=folder,
    )  # fmt: skip
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    openssl(
        "x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial",
        "-days", "1", "-extfile", "names", "-out", f"{name}.pem", folder=folder,
    )  # fmt: skip
    return TlsConfig(certificate=folder / f"{name}.pem", key=folder / f"{name}.key")

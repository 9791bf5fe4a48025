"""Who asks, and what they may: bearer tokens by role on TCP; on the Unix socket the file's permissions are the login.

Tokens are 256 random bits, so a plain SHA-256 of each is all that is kept: there is nothing to guess. The file is read
anew when it changes, so that a token made or revoked on the command line counts from the next request on.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import time
from dataclasses import asdict, dataclass
from enum import IntEnum
from hashlib import sha256
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from pydantic import TypeAdapter, ValidationError

from agent.domain.errors import ErrorOrigin, HearthError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TOKEN_PREFIX: Final = "hearth_"
"""Begins every token, so that people and secret scanners know one when they see it."""


class Role(IntEnum):
    """What a caller may do; each role may do all that the ones before it may."""

    NONE = 0  # liveness and the page's static files
    READ = 1
    LEASE = 2
    ADMIN = 3


class UnauthenticatedError(HearthError):
    """The request carries no token, or none that counts."""

    code = "unauthenticated"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


class RoleTooLowError(HearthError):
    """The caller is known, but may not do this."""

    code = "role-too-low"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


class TokenFileError(HearthError):
    """The tokens cannot be read or written."""

    code = "token-file"


class TokenNameError(HearthError):
    """A token of that name exists already, or does not exist."""

    code = "token-name"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, for the log, and what they may."""

    name: str
    role: Role
    anonymous: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    """One token as it is kept: by its hash."""

    name: str
    role: Role
    sha256: str
    created_at_s: float
    expires_at_s: float | None = None


class Gate(Protocol):
    """Decides who a TCP caller is."""

    @property
    def asks(self) -> bool:
        """Whether callers must show a token: then no web page from elsewhere can pass for one."""

    def caller(self, authorization: str) -> Caller:
        """Return who sent this Authorization header. Raises `UnauthenticatedError`."""


class TokenGate:
    """Knows callers by their bearer tokens. Those without one are `anonymous`: by default they may do nothing."""

    def __init__(self, path: Path, *, anonymous: Role = Role.NONE, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._anonymous = Caller("anonymous", anonymous, anonymous=True)
        self._stamp: tuple[int, int, int] | None = None
        self._tokens: tuple[Token, ...] = ()

    @property
    def asks(self) -> bool:
        """See `Gate`."""
        return self._anonymous.role is Role.NONE

    def caller(self, authorization: str) -> Caller:
        """Return who sent this Authorization header. Raises `UnauthenticatedError`, `TokenFileError`."""
        if not authorization and not self.asks:
            return self._anonymous
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise UnauthenticatedError("the request carries no token", remedy="send Authorization: Bearer TOKEN")
        digest = _digest(secret.strip())
        found = [token for token in self._current() if hmac.compare_digest(token.sha256, digest)]
        if not found:
            raise UnauthenticatedError("the token is unknown or revoked", remedy="make one: hearth token create NAME")
        expires_at_s = found[0].expires_at_s
        if expires_at_s is not None and expires_at_s <= self._clock():
            raise UnauthenticatedError(f"the token {found[0].name!r} has expired", remedy="make a new one")
        return Caller(found[0].name, found[0].role)

    def _current(self) -> tuple[Token, ...]:
        try:
            seen = os.stat(self._path)
            stamp = (seen.st_mtime_ns, seen.st_size, seen.st_ino)
        except FileNotFoundError:
            return ()
        if stamp != self._stamp:
            self._tokens, self._stamp = load_tokens(self._path), stamp
        return self._tokens


_TOKENS: Final = TypeAdapter(tuple[Token, ...])


def tokens_path(data_dir: Path) -> Path:
    """Return where the tokens of the agent with this data directory are kept."""
    return data_dir / "tokens.json"


def load_tokens(path: Path) -> tuple[Token, ...]:
    """Return the tokens in a file; none when there is no file. Raises `TokenFileError`."""
    try:
        return _TOKENS.validate_json(path.read_bytes())
    except FileNotFoundError:
        return ()
    except (OSError, ValidationError) as error:
        raise TokenFileError(
            f"{path} cannot be used: {error}", remedy="mend or remove it; `hearth token list`"
        ) from None


def create_token(path: Path, name: str, role: Role, *, now_s: float, ttl_s: float | None = None) -> str:
    """Make a token and return its secret, which is kept nowhere. Raises `TokenNameError` when the name is taken."""
    tokens = load_tokens(path)
    if any(token.name == name for token in tokens):
        raise TokenNameError(f"there is a token {name!r} already", remedy="revoke it first, or choose another name")
    secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
    made = Token(name, role, _digest(secret), now_s, now_s + ttl_s if ttl_s else None)
    _write(path, (*tokens, made))
    return secret


def revoke_token(path: Path, name: str) -> None:
    """Forget a token. Raises `TokenNameError` when there is none of that name."""
    tokens = load_tokens(path)
    left = tuple(token for token in tokens if token.name != name)
    if len(left) == len(tokens):
        raise TokenNameError(f"there is no token {name!r}", remedy="`hearth token list` shows what there is")
    _write(path, left)


def _write(path: Path, tokens: tuple[Token, ...]) -> None:
    """Replace the file in one step, readable by its owner only."""
    fresh = path.with_name(f"{path.name}.new")
    text = json.dumps([asdict(token) for token in tokens], indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.unlink(missing_ok=True)
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        raise TokenFileError(f"{path} cannot be written: {error}", remedy="run this as the agent's own user") from error


def _digest(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()

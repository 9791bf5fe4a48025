"""Authentication: bearer tokens with a role on TCP; on the Unix socket the permissions of its file.

Tokens are 256 random bits, so their SHA-256 hashes cannot be guessed, and only the hashes are stored. The file is read
again when it changes: a token that is created or revoked on the command line takes effect with the next request."""

from __future__ import annotations

import fcntl
import hmac
import json
import os
import secrets
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import IntEnum
from hashlib import sha256
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from pydantic import TypeAdapter, ValidationError

from agent.config.read_file import read_regular_file
from agent.domain.errors import ErrorOrigin, HearthError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TOKEN_PREFIX: Final = "hearth_"
"""The prefix of every token, so that people and secret scanners recognise it."""


class Role(IntEnum):
    """The role of a caller. Each role includes the ones before it."""

    NONE = 0  # liveness and the page's static files
    READ = 1
    LEASE = 2
    ADMIN = 3


class UnauthenticatedError(HearthError):
    """The request has no valid token."""

    code = "unauthenticated"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


class RoleTooLowError(HearthError):
    """The caller's role does not permit the operation."""

    code = "role-too-low"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


class TokenFileError(HearthError):
    """The tokens cannot be read or written."""

    code = "token-file"


class TokenNameError(HearthError):
    """A token of that name exists already, or is missing."""

    code = "token-name"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


@dataclass(frozen=True, slots=True)
class Caller:
    """The name of a caller, for the log, and its role."""

    name: str
    role: Role
    anonymous: bool = False
    is_local: bool = False

    @property
    def lease_owner(self) -> str:
        """The owner of the leases that it requests: the token's name, "" without a token."""
        return "" if self.anonymous or self.is_local else self.name

    @property
    def lease_user(self) -> str | None:
        """The owner whose leases it may use; None: those of all."""
        return None if self.role >= Role.ADMIN else self.lease_owner

    def can_see_lease(self, owner: str | None) -> bool:
        """Whether it may read the id of a lease of `owner`. An anonymous reader may not; a lease token sees its own."""
        if self.role is Role.LEASE:
            return owner is None or owner == self.name
        return not self.anonymous or self.role >= Role.ADMIN


@dataclass(frozen=True, slots=True)
class Token:
    """One stored token, with its hash."""

    name: str
    role: Role
    sha256: str
    created_at_s: float
    expires_at_s: float | None = None


class Authenticator(Protocol):
    """Identifies TCP callers."""

    @property
    def requires_token(self) -> bool:
        """Whether callers need a token. Then no foreign web page can act as one."""

    def caller(self, authorization: str) -> Caller:
        """Return the caller with this Authorization header. Raises `UnauthenticatedError`."""


class TokenAuthenticator:
    """Identifies callers by their bearer tokens. Callers without one have the role `anonymous`, by default none."""

    def __init__(self, path: Path, *, anonymous: Role = Role.NONE, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._anonymous = Caller("anonymous", anonymous, anonymous=True)
        self._stamp: tuple[int, int, int] | None = None
        self._tokens: tuple[Token, ...] = ()

    @property
    def requires_token(self) -> bool:
        """See `Authenticator`."""
        return self._anonymous.role is Role.NONE

    def caller(self, authorization: str) -> Caller:
        """Return the caller with this Authorization header. Raises `UnauthenticatedError`, `TokenFileError`."""
        if not authorization and not self.requires_token:
            return self._anonymous
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer" or not secret or not secret.isascii():
            raise UnauthenticatedError("the request carries no token", remedy="send Authorization: Bearer TOKEN")
        digest = _digest(secret.strip())
        found = [token for token in self._current() if hmac.compare_digest(token.sha256, digest)]
        if not found:
            raise UnauthenticatedError(
                "the token is unknown or revoked", remedy="create one: `hearth token create NAME`"
            )
        expires_at_s = found[0].expires_at_s
        if expires_at_s is not None and expires_at_s <= self._clock():
            raise UnauthenticatedError(f"the token {found[0].name!r} has expired", remedy="create a new one")
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
    """Return the path of the token file of the agent with this data directory."""
    return data_dir / "tokens.json"


def load_tokens(path: Path) -> tuple[Token, ...]:
    """Return the tokens in a file, or none if there is no file. Raises `TokenFileError`."""
    try:
        return _TOKENS.validate_json(read_regular_file(path))
    except FileNotFoundError:
        return ()
    except (OSError, ValidationError) as error:
        raise TokenFileError(
            f"{path} cannot be used: {error}", remedy="correct or remove it; see `hearth token list`"
        ) from None


def create_token(path: Path, name: str, role: Role, *, now_s: float, ttl_s: float | None = None) -> str:
    """Create a token and return its secret, which is not stored. Raises `TokenNameError` if the name is taken."""
    with _locked(path):
        tokens = load_tokens(path)
        if any(token.name == name for token in tokens):
            raise TokenNameError(f"a token {name!r} exists already", remedy="revoke it first, or choose another name")
        secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
        made = Token(name, role, _digest(secret), now_s, now_s + ttl_s if ttl_s else None)
        _write(path, (*tokens, made))
    return secret


def revoke_token(path: Path, name: str) -> None:
    """Remove a token. Raises `TokenNameError` if there is none of that name."""
    with _locked(path):
        tokens = load_tokens(path)
        left = tuple(token for token in tokens if token.name != name)
        if len(left) == len(tokens):
            raise TokenNameError(f"there is no token {name!r}", remedy="list the tokens with `hearth token list`")
        _write(path, left)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Exclude other commands that change the file: of two changes at the same time, the first would be lost."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise TokenFileError(f"{path} cannot be written: {error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, tokens: tuple[Token, ...]) -> None:
    """Replace the file in one step, readable by its owner only."""
    fresh = path.with_name(f"{path.name}.new")
    text = json.dumps([asdict(token) for token in tokens], indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
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

"""The API client of the command line: JSON over HTTP, with errors that name the remedy."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import TYPE_CHECKING, Final, Generic, Self, TypeVar, cast

from agent.cli.documents import StreamedEvent
from agent.cli.endpoint import AgentNotRunningError, AgentUnreachableError
from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from http.client import HTTPResponse

    from agent.cli.endpoint import LocalEndpoint, RemoteEndpoint

TIMEOUT_S: Final = 30.0
STREAM_SILENCE_S: Final = 45.0
"""The agent sends a comment every 15 s when there are no events. Three missed ones mean that it hangs."""

DocumentT = TypeVar("DocumentT")


class ProblemError(HearthError):
    """The agent answered with a problem; `problem` is the problem's own code."""

    code = "problem"

    def __init__(self, problem: str, message: str, *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.problem = problem


class IncompatibleAgentError(HearthError):
    """The agent's document lacks keys that this version of `hearth` needs."""

    code = "agent-incompatible"


@dataclass(frozen=True, slots=True)
class Answer(Generic[DocumentT]):
    """An answer of the agent. `at` is the time on the host's clock."""

    document: DocumentT
    etag: str
    at: datetime


class ApiClient:
    """A client of one agent. Sends one request at a time over one connection, which stays open between them."""

    def __init__(self, endpoint: LocalEndpoint | RemoteEndpoint) -> None:
        self._endpoint = endpoint
        self._connection = endpoint.build_connection(TIMEOUT_S)
        self._login = {"Authorization": f"Bearer {endpoint.token}"} if endpoint.token else {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def get(self, path: str, kind: type[DocumentT]) -> Answer[DocumentT]:
        """Return the document at `path`. Raises as `request` does."""
        return self.request("GET", path, kind)

    def get_if_changed(self, path: str, kind: type[DocumentT], etag: str) -> Answer[DocumentT] | None:
        """Return the document at `path`, or None while its entity tag is still `etag`. Raises as `request` does."""
        response, raw = self._checked("GET", path, None, {"If-None-Match": etag} if etag else {}, TIMEOUT_S)
        return None if response.status == 304 else _answer(response, raw, kind)

    def request(
        self,
        method: str,
        path: str,
        kind: type[DocumentT],
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Answer[DocumentT]:
        """Send one request and return its answer, a document of the given kind; `object` for an ignored answer.

        Raises `AgentUnreachableError` when there is no answer within `timeout_s`, `ProblemError` for every problem, and
        `IncompatibleAgentError` when the document lacks keys of its kind.
        """
        response, raw = self._checked(method, path, body, dict(headers or {}), timeout_s)
        return _answer(response, raw, kind)

    def stream(self, path: str, *, after: int) -> Iterator[StreamedEvent]:
        """Yield the events of a stream that begins after the event of that number.

        Ends when the agent ends the stream. Raises `AgentUnreachableError` when the connection breaks, or when nothing
        arrives for `STREAM_SILENCE_S`.
        """
        connection = self._endpoint.build_connection(STREAM_SILENCE_S)
        try:
            with self._unreachable_errors():
                headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after), **self._login}
                connection.request("GET", path, headers=headers)
                response = connection.getresponse()
                if response.status >= 400:
                    raise problem_error(response.status, json.loads(response.read()))
                for line in response:
                    if line.startswith(b"data: "):
                        yield check_keys(json.loads(line.removeprefix(b"data: ")), StreamedEvent)
        finally:
            connection.close()

    def read_raw(self, path: str) -> bytes:
        """Return the body at `path` for any status: a failed readiness check has a body too."""
        with self._unreachable_errors():
            return self._send("GET", path, None, {}, TIMEOUT_S)[1]

    @contextmanager
    def _unreachable_errors(self) -> Iterator[None]:
        """Turn errors of the connection into `AgentUnreachableError`."""
        try:
            yield
        except TimeoutError as error:
            message = f"the agent on {self._endpoint} did not answer in time"
            raise AgentUnreachableError(message, remedy="see `hearth logs` for what the agent is doing") from error
        except PermissionError as error:
            message = f"this user may not connect to the agent on {self._endpoint}"
            raise AgentUnreachableError(message, remedy="run this command as the agent's own user") from error
        except (OSError, HTTPException, ValueError) as error:
            message = f"the agent does not answer on {self._endpoint}: {getattr(error, 'strerror', None) or error}"
            is_stopped = isinstance(error, FileNotFoundError | ConnectionRefusedError)
            kind = AgentNotRunningError if is_stopped else AgentUnreachableError
            raise kind(message, remedy=self._endpoint.remedy) from error

    def _checked(
        self, method: str, path: str, body: object, headers: dict[str, str], timeout_s: float
    ) -> tuple[HTTPResponse, bytes]:
        """Send one request and raise the error that the answer describes, if any."""
        with self._unreachable_errors():
            response, raw = self._send(method, path, body, headers, timeout_s)
            if response.status >= 400:
                raise problem_error(response.status, json.loads(raw) if raw else None)
            return response, raw

    def _send(
        self, method: str, path: str, body: object, headers: dict[str, str], timeout_s: float
    ) -> tuple[HTTPResponse, bytes]:
        connection = self._connection
        connection.timeout = timeout_s
        if connection.sock is not None:
            connection.sock.settimeout(timeout_s)
        content = None if body is None else json.dumps(body).encode()
        if content is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, path, content, headers | self._login)
            response = connection.getresponse()
            return response, response.read()
        except BaseException:
            connection.close()  # a connection with half an exchange cannot be used again
            raise


def problem_error(status: int, document: object) -> ProblemError:
    """Return the error for a problem document, which may be incomplete."""
    problem = document if isinstance(document, dict) else {}
    message = str(problem.get("detail") or f"the agent answered with status {status}")
    return ProblemError(str(problem.get("code", "error")), message, remedy=str(problem.get("remedy", "")))


def check_keys(document: object, kind: type[DocumentT]) -> DocumentT:
    """Return the document as its kind. Raises `IncompatibleAgentError` when one of its outer keys is missing."""
    needed: frozenset[str] = getattr(kind, "__required_keys__", frozenset())
    missing = needed - document.keys() if isinstance(document, dict) else needed
    if missing:
        message = f"the agent's answer lacks {', '.join(sorted(missing))}"
        raise IncompatibleAgentError(message, remedy="use the version of `hearth` that the agent has")
    return cast("DocumentT", document)


def _answer(response: HTTPResponse, raw: bytes, kind: type[DocumentT]) -> Answer[DocumentT]:
    try:
        document = check_keys(json.loads(raw) if raw else None, kind)
    except ValueError as error:
        message = "the answer is not JSON, so it is not from an agent"
        raise AgentUnreachableError(message, remedy="check the address of the agent") from error
    date = response.headers["Date"]
    at = parsedate_to_datetime(date) if date else datetime.now(UTC)
    return Answer(document, response.headers["ETag"] or "", at)

"""The API client of the command line: JSON over HTTP, with errors that say what to do."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Final, Self

from agent.cli.place import AgentUnreachableError
from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from http.client import HTTPResponse

    from agent.cli.place import Local, Remote

TIMEOUT_S: Final = 30.0
STREAM_SILENCE_S: Final = 45.0
"""The agent sends a comment every 15 s when nothing happens: three missed ones mean that it hangs."""


class ProblemError(HearthError):
    """The agent answered with a problem; `problem` is the problem's own code."""

    code = "problem"

    def __init__(self, problem: str, message: str, *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Answer:
    """What the agent answered. `at` is the host's clock; `document` is None for a 304 or an empty body."""

    status: int
    document: Any
    etag: str
    at: datetime


class ApiClient:
    """Asks one agent. One request at a time; the connection is kept between them."""

    def __init__(self, place: Local | Remote) -> None:
        self._place = place
        self._connection = place.connection(TIMEOUT_S)
        self._login = {"Authorization": f"Bearer {place.token}"} if place.token else {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def get(self, path: str, *, etag: str = "") -> Answer:
        """Return the document at `path`, or a 304 without one when `etag` is still current."""
        return self.ask("GET", path, headers={"If-None-Match": etag} if etag else {})

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Answer:
        """Send one request and return its answer.

        Raises `AgentUnreachableError` when nobody answers within `timeout_s`, `ProblemError` for every problem.
        """
        with self._told():
            return self._exchange(method, path, body, dict(headers or {}), timeout_s)

    def stream(self, path: str, *, after: int) -> Iterator[dict[str, Any]]:
        """Yield the documents of an event stream that begins after the event of that number.

        Ends when the agent ends the stream. Raises `AgentUnreachableError` when it goes away or falls silent.
        """
        connection = self._place.connection(STREAM_SILENCE_S)
        try:
            with self._told():
                headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after), **self._login}
                connection.request("GET", path, headers=headers)
                response = connection.getresponse()
                if response.status >= 400:
                    raise problem_of(response.status, json.loads(response.read()))
                for line in response:
                    if line.startswith(b"data: "):
                        yield json.loads(line.removeprefix(b"data: "))
        finally:
            connection.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what can go wrong with the socket into an error that says what to do."""
        try:
            yield
        except TimeoutError as error:
            message = f"the agent on {self._place} did not answer in time"
            raise AgentUnreachableError(message, remedy="see `hearth logs` for what it is busy with") from error
        except PermissionError as error:
            message = f"this user may not speak to the agent on {self._place}"
            raise AgentUnreachableError(message, remedy="run this as the agent's own user") from error
        except (OSError, HTTPException, ValueError) as error:
            message = f"the agent does not answer on {self._place}: {getattr(error, 'strerror', None) or error}"
            remedy = self._place.remedy
            raise AgentUnreachableError(message, remedy=remedy) from error

    def raw(self, path: str) -> bytes:
        """Return what the agent answers at `path`, whatever its status: a failed readiness check is an answer too."""
        with self._told():
            return self._send("GET", path, None, {}, TIMEOUT_S)[1]

    def _exchange(self, method: str, path: str, body: object, headers: dict[str, str], timeout_s: float) -> Answer:
        response, raw = self._send(method, path, body, headers, timeout_s)
        document = json.loads(raw) if raw else None
        if response.status >= 400:
            raise problem_of(response.status, document)
        date = response.headers["Date"]
        at = parsedate_to_datetime(date) if date else datetime.now(UTC)
        return Answer(response.status, document, response.headers["ETag"] or "", at)

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
            connection.close()  # half an exchange cannot be taken up again
            raise


def problem_of(status: int, document: object) -> ProblemError:
    """Return the error that a problem document tells of."""
    problem = document if isinstance(document, dict) else {}
    message = str(problem.get("detail") or f"the agent answered with status {status}")
    return ProblemError(str(problem.get("code", "error")), message, remedy=str(problem.get("remedy", "")))

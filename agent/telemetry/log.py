"""Structured logs: one JSON object a line, stable keys, written by a thread of its own.

Every line has `ts` (ISO 8601, UTC, milliseconds), `level` and `event` (kebab-case), in that order, then the keys of the
event and whatever is bound in structlog's context variables. Lines of libraries that log by the standard library come
out the same, with their logger's name under `logger`. A line is rendered and redacted where it is logged; only finished
text crosses to the thread that writes it, so a slow disk never stops the event loop.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, TextIO

import structlog

from agent.telemetry.log_file import LogFile, Retention
from agent.telemetry.log_rendering import render_json_line
from agent.telemetry.redact import redact_event

if TYPE_CHECKING:
    from pathlib import Path

    from structlog.typing import EventDict, Processor, WrappedLogger

MAX_QUEUED_LINES: Final = 20_000
"""Lines that may wait for the disk. Beyond that lines are dropped and counted: memory is worth more than a log."""

LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


@dataclass(frozen=True, slots=True)
class Logs:
    """The running log. `close` writes what is queued and puts the process's logging back as it was."""

    _handler: _BoundedQueueHandler
    _listener: QueueListener
    _previous_level: int

    def set_level(self, level: str) -> None:
        """Log from this level on: one of `LEVELS`."""
        _set_level(LEVELS[level])

    def close(self) -> None:
        """Flush and stop the writing thread, and detach from the standard library's root logger. Once is enough."""
        root = logging.getLogger()
        if self._handler not in root.handlers:
            return
        root.removeHandler(self._handler)
        root.setLevel(self._previous_level)
        self._listener.stop()
        for handler in self._listener.handlers:
            handler.close()
        structlog.reset_defaults()


def configure(
    *, level: str = "info", path: Path | None = None, retention: Retention | None = None, terminal: TextIO | None
) -> Logs:
    """Start logging: to the rotating file `path`, to the stream `terminal`, or to both.

    A terminal gets lines for people; any other stream gets the same JSON as the file. Raises OSError when the folder of
    the log cannot be made.
    """
    queue: SimpleQueue[logging.LogRecord] = SimpleQueue()
    handler = _BoundedQueueHandler(queue)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_context(), structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, redact_event, _ordered, _json],
        )
    )
    targets: list[logging.Handler] = []
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        targets.append(LogFile(path, retention or Retention(), lost_lines=_lost_lines))
    if terminal is not None:
        targets.append(_Terminal(terminal))
    listener = QueueListener(queue, *targets)
    root = logging.getLogger()
    logs = Logs(handler, listener, root.level)
    structlog.configure(
        processors=[*_context(), structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        # Bound anew for each line, so that a change of level takes hold in loggers made before it.
        cache_logger_on_first_use=False,
    )
    _set_level(LEVELS[level])
    root.addHandler(handler)
    listener.start()
    return logs


def _set_level(number: int) -> None:
    logging.getLogger().setLevel(number)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(number))


def _context() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        _stamp,
        structlog.processors.format_exc_info,
    ]


def _stamp(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["ts"] = _now()
    return event


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _ordered(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    head = {key: event.pop(key) for key in ("ts", "level", "event") if key in event}
    return {**head, **event}


def _json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    return json.dumps(event, ensure_ascii=False, default=str)


def _lost_lines(count: int) -> str:
    return json.dumps({"ts": _now(), "level": "warning", "event": "log-lines-lost", "count": count})


class _BoundedQueueHandler(QueueHandler):
    """Hands finished lines to the writing thread, up to `MAX_QUEUED_LINES`; then drops and, later, says so."""

    queue: SimpleQueue[logging.LogRecord]

    def __init__(self, queue: SimpleQueue[logging.LogRecord]) -> None:
        super().__init__(queue)
        self._lost = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queue one line, or count it as lost."""
        if self.queue.qsize() >= MAX_QUEUED_LINES:
            self._lost += 1
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            self.queue.put(logging.makeLogRecord({"msg": _lost_lines(lost)}))
        self.queue.put(record)


class _Terminal(logging.StreamHandler[Any]):
    """Shows lines on a stream: for people when it is a terminal, as JSON otherwise."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._people = stream.isatty()

    def format(self, record: logging.LogRecord) -> str:
        """Return the line as this stream wants it."""
        return render_json_line(record.getMessage(), colour=True) if self._people else record.getMessage()

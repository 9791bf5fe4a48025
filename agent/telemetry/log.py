"""Structured logs: one JSON object per line with stable keys, written by a separate thread.

Each line has `ts` (ISO 8601, UTC, milliseconds), `level` and `event` (kebab-case), in that order, then the keys of the
event and of structlog's context variables. Lines of libraries that use the standard library's logging have the same
format, with the name of their logger in `logger`. A line is rendered and redacted in the thread that logs it; the
writing thread gets only finished text. Therefore a slow disk does not block the event loop.
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
from agent.telemetry.log_rendering import render_json_line, render_line
from agent.telemetry.redact import redact_event

if TYPE_CHECKING:
    from pathlib import Path

    from structlog.typing import EventDict, Processor, WrappedLogger

MAX_QUEUED_LINES: Final = 20_000
"""Lines that can wait for the disk. More lines are dropped and counted, to limit the memory that the log uses."""

LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


@dataclass(frozen=True, slots=True)
class Logs:
    """The active log. `close` writes the queued lines and restores the previous logging of the process."""

    _handler: _BoundedQueueHandler
    _listener: QueueListener
    _previous_level: int

    def set_level(self, level: str) -> None:
        """Set the lowest level that is logged: one of `LEVELS`."""
        _set_level(LEVELS[level])

    def close(self) -> None:
        """Flush and stop the writing thread, and detach from the root logger. Further calls do nothing."""
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

    If the stream is a terminal, its lines are rendered as text; otherwise they are the same JSON as in the file. Raises
    `OSError` if the folder of the log cannot be created.
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
        # Without the cache, a change of the level also affects loggers that exist already.
        cache_logger_on_first_use=False,
    )
    _set_level(LEVELS[level])
    root.addHandler(handler)
    listener.start()
    return logs


def text_processors() -> list[Processor]:
    """Return the processors for lines of text on a stream of this process: redacted and escaped as in the log."""
    return [*_context(), redact_event, _text]


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


def _text(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    return render_line(event, colour=False)


def _lost_lines(count: int) -> str:
    return json.dumps({"ts": _now(), "level": "warning", "event": "log-lines-lost", "count": count})


class _BoundedQueueHandler(QueueHandler):
    """Queues finished lines for the writing thread, up to `MAX_QUEUED_LINES`. Later it logs how many were dropped."""

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
    """Writes lines to a stream: as text if it is a terminal, otherwise as JSON."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._is_terminal = stream.isatty()

    def format(self, record: logging.LogRecord) -> str:
        """Return the line in the format for this stream."""
        return render_json_line(record.getMessage(), colour=True) if self._is_terminal else record.getMessage()

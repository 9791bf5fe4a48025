"""`hearth journal`: look at the journal of an agent that does not run, and mend it."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli import options
from agent.cli.exits import Exit
from agent.cli.output import print_json, say
from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.config import Config
    from agent.domain.model import Observed, VmSize
    from agent.engine.journal_recovery import Contents

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Look at the journal while no agent runs; mend it.")

FILE = "journal.sqlite"


class NoJournalError(HearthError):
    """There is no journal where the configuration says."""

    code = "no-journal"


class JournalHealthyError(HearthError):
    """Nothing is wrong with the journal, so there is no reason to rebuild it."""

    code = "journal-healthy"


@app.command()
def inspect(config: options.Config = None, as_json: options.Json = False) -> None:
    """Show what the journal holds: records, events and leases. No agent may be running.

    \b
    hearth journal inspect --config ./hearth.toml
    """
    with _journal(config) as (loaded, path):
        contents = _read(path)
    summary = _summary(loaded.data_dir / FILE, contents)
    if as_json:
        print_json(summary)
        return
    say(f"{path}: schema {contents.version}, {summary['bytes']} bytes")
    for kind, count in summary["records"].items():
        say(f"{count:>8}  {kind}")
    say(f"{summary['events']:>8}  events" + (f", the last at {summary['last_event_at']}" if contents.events else ""))


@app.command()
def export(config: options.Config = None) -> None:
    """Print every record and event as one JSON object a line. No agent may be running.

    \b
    hearth journal export | jq 'select(.kind == "Lease")'
    """
    with _journal(config) as (_, path):
        contents = _read(path)
    for kind, records in contents.records.items():
        for key, record in sorted(records.items()):
            say(json.dumps({"kind": kind.__name__, "key": key, "record": asdict(record)}, default=str))
    for number, event in sorted(contents.events.items()):
        say(json.dumps({"kind": "Event", "key": number, "record": asdict(event)}, default=str))


@app.command()
def check(config: options.Config = None, as_json: options.Json = False) -> int:
    """Check that the journal can be read whole and agrees with itself. No agent may be running."""
    with _journal(config) as (_, path):
        errors = _read(path).errors
    if as_json:
        print_json({"ok": not errors, "errors": errors})
    else:
        say("\n".join(errors) if errors else f"{path} is good")
    return Exit.FAILURE if errors else Exit.OK


@app.command()
def rebuild(
    force: Annotated[bool, typer.Option("--force", help="Also when nothing is wrong with it.")] = False,
    config: options.Config = None,
    as_json: options.Json = False,
) -> None:
    """Make a fresh journal from the VMs that run and from what can still be read. The old file is kept beside it.

    VMs that run are adopted: leased ones stay leased, idle ones must pass their probes again before they serve. Of a
    damaged journal no VM is known to be idle: each is held by a lease for an hour, or until you release it. No agent
    may be running.

    \b
    hearth journal check || hearth journal rebuild
    """
    from agent.engine import journal_recovery  # noqa: PLC0415 - pydantic is slow to import

    with _journal(config) as (loaded, path):
        contents = _read(path)
        if not contents.errors and not force:
            raise JournalHealthyError(f"nothing is wrong with {path}", remedy="use --force to rebuild it all the same")
        now_s = time.time()
        seen = asyncio.run(_running(loaded))
        rebuilt = journal_recovery.rebuild(contents, seen, _sizes(loaded, contents), now_s)
        fresh = path.with_name(f"{FILE}.fresh")
        fresh.unlink(missing_ok=True)
        journal_recovery.write(fresh, rebuilt)
        aside = journal_recovery.replace_journal(
            path, fresh, stamp=f"{datetime.fromtimestamp(now_s, UTC):%Y%m%dT%H%M%SZ}"
        )
    result = {
        "adopted": rebuilt.adopted, "lost_vms": rebuilt.lost_vms, "kept_leases": rebuilt.kept_leases,
        "lost_leases": rebuilt.lost_leases, "held": rebuilt.held, "old": str(aside),
    }  # fmt: skip
    if as_json:
        print_json(result)
        return
    say(f"{len(rebuilt.adopted)} VMs adopted, {len(rebuilt.lost_vms)} do not run any more")
    say(f"{len(rebuilt.kept_leases)} leases kept, {len(rebuilt.lost_leases)} broken")
    if rebuilt.held:
        say(f"{len(rebuilt.held)} VMs are held for an hour, since somebody may be using them; see `hearth vms`")
    say(f"the old journal is {aside}")


@contextmanager
def _journal(config: Path | None) -> Iterator[tuple[Config, Path]]:
    """Hold the data directory, so that no agent works on it meanwhile."""
    from agent.config import load_config  # noqa: PLC0415 - pydantic is slow to import
    from agent.host.data_dir_lock import lock_data_directory  # noqa: PLC0415

    loaded = load_config(options.config_path(config))
    path = loaded.data_dir / FILE
    if not path.exists():
        raise NoJournalError(f"there is no journal at {path}", remedy="name the agent's --config")
    with lock_data_directory(loaded.data_dir):
        yield loaded, path


def _read(path: Path) -> Contents:
    from agent.engine import journal_recovery  # noqa: PLC0415 - pydantic is slow to import

    return journal_recovery.read(path)


def _summary(path: Path, contents: Contents) -> dict[str, Any]:
    last = max(contents.events, default=0)
    at = f"{datetime.fromtimestamp(contents.events[last].at_s, UTC):%Y-%m-%dT%H:%M:%SZ}" if last else None
    return {
        "path": str(path),
        "bytes": path.stat().st_size,
        "version": contents.version,
        "records": {kind.__name__: len(records) for kind, records in contents.records.items()},
        "events": len(contents.events),
        "last_event": last,
        "last_event_at": at,
        "faults": contents.errors,
    }


async def _running(config: Config) -> tuple[Observed, ...]:
    from agent.hypervisors.factory import build_hypervisor  # noqa: PLC0415 - drivers are slow to import

    hypervisor = build_hypervisor(config)
    try:
        return await hypervisor.inventory()
    finally:
        await hypervisor.close()


def _sizes(config: Config, contents: Contents) -> dict[str, VmSize]:
    """Return the size of each pool's VMs: from the last good assignment, else from the file."""
    from agent.config import Assignment, ConfigError, load_assignment  # noqa: PLC0415 - pydantic is slow to import
    from agent.domain.model import StoredAssignment  # noqa: PLC0415

    stored = contents.records[StoredAssignment].get("current")
    try:
        document = (
            Assignment.model_validate_json(stored.document) if stored else load_assignment(config.assignment_path)
        )
    except (ConfigError, ValueError):
        return {}
    return {pool.name: pool.size for pool in document.specs()}

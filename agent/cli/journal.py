"""`hearth journal`: inspect, export, check and rebuild the journal of an agent that does not run."""

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
from agent.cli.exit_codes import ExitCode
from agent.cli.output import print_json, print_line
from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.config import Config
    from agent.domain.model import Observed, VmSize
    from agent.engine.journal_recovery import Contents

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Inspect or rebuild the journal while no agent runs."
)

FILE = "journal.sqlite"


class NoJournalError(HearthError):
    """There is no journal in the configured data directory."""

    code = "no-journal"


class JournalHealthyError(HearthError):
    """The journal has no errors, so it is not rebuilt without --force."""

    code = "journal-healthy"


@app.command()
def inspect(config: options.Config = None, as_json: options.Json = False) -> None:
    """Count the records and events in the journal. No agent may be running.

    \b
    hearth journal inspect --config ./hearth.toml
    """
    with _locked_journal(config) as (loaded, path):
        contents = _read(path)
    summary = _summary(loaded.data_dir / FILE, contents)
    if as_json:
        print_json(summary)
        return
    print_line(f"{path}: schema {contents.version}, {summary['bytes']} bytes")
    for kind, count in summary["records"].items():
        print_line(f"{count:>8}  {kind}")
    print_line(
        f"{summary['events']:>8}  events" + (f", the last at {summary['last_event_at']}" if contents.events else "")
    )


@app.command()
def export(config: options.Config = None) -> None:
    """Print each record and event as one line of JSON. No agent may be running.

    \b
    hearth journal export | jq 'select(.kind == "Lease")'
    """
    with _locked_journal(config) as (_, path):
        contents = _read(path)
    for kind, records in contents.records.items():
        for key, record in sorted(records.items()):
            print_line(json.dumps({"kind": kind.__name__, "key": key, "record": asdict(record)}, default=str))
    for number, event in sorted(contents.events.items()):
        print_line(json.dumps({"kind": "Event", "key": number, "record": asdict(event)}, default=str))


@app.command()
def check(config: options.Config = None, as_json: options.Json = False) -> int:
    """Check that the journal is readable and consistent. No agent may be running.

    \b
    hearth journal check --json
    """
    with _locked_journal(config) as (_, path):
        errors = _read(path).errors
    if as_json:
        print_json({"ok": not errors, "errors": errors})
    else:
        print_line("\n".join(errors) if errors else f"{path} is valid")
    return ExitCode.FAILURE if errors else ExitCode.OK


@app.command()
def rebuild(
    force: Annotated[bool, typer.Option("--force", help="Rebuild a journal without errors too.")] = False,
    config: options.Config = None,
    as_json: options.Json = False,
) -> None:
    """Create a new journal from the running VMs and the readable records. Keep the old file next to it.

    Running VMs are adopted: leased ones stay leased, idle ones must pass their probes again before they are leased.
    A damaged journal cannot show that a VM is idle, so a lease of one hour holds each of its VMs. You can release it
    earlier. No agent may be running.

    \b
    hearth journal check || hearth journal rebuild
    """
    from agent.engine import journal_recovery  # noqa: PLC0415 - pydantic is slow to import

    with _locked_journal(config) as (loaded, path):
        contents = _read(path)
        if not contents.errors and not force:
            raise JournalHealthyError(f"{path} has no errors", remedy="add --force to rebuild it anyway")
        now_s = time.time()
        observed = asyncio.run(_list_running_vms(loaded))
        rebuilt = journal_recovery.rebuild(contents, observed, _sizes(loaded, contents), now_s)
        rebuilt_path = path.with_name(f"{FILE}.rebuilt")
        rebuilt_path.unlink(missing_ok=True)
        journal_recovery.write(rebuilt_path, rebuilt)
        old_path = journal_recovery.replace_journal(
            path, rebuilt_path, stamp=f"{datetime.fromtimestamp(now_s, UTC):%Y%m%dT%H%M%SZ}"
        )
    result = {
        "adopted": rebuilt.adopted, "lost_vms": rebuilt.lost_vms, "kept_leases": rebuilt.kept_leases,
        "lost_leases": rebuilt.lost_leases, "held": rebuilt.held, "old": str(old_path),
    }  # fmt: skip
    if as_json:
        print_json(result)
        return
    print_line(f"{len(rebuilt.adopted)} VMs adopted, {len(rebuilt.lost_vms)} no longer run")
    print_line(f"{len(rebuilt.kept_leases)} leases kept, {len(rebuilt.lost_leases)} broken")
    if rebuilt.held:
        print_line(f"{len(rebuilt.held)} VMs are leased for an hour, because a job may use them; see `hearth vms`")
    print_line(f"the old journal is {old_path}")


@contextmanager
def _locked_journal(config: Path | None) -> Iterator[tuple[Config, Path]]:
    """Lock the data directory, so that no agent can start on it."""
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
        "errors": contents.errors,
    }


async def _list_running_vms(config: Config) -> tuple[Observed, ...]:
    from agent.hypervisors.factory import build_hypervisor  # noqa: PLC0415 - drivers are slow to import

    hypervisor = build_hypervisor(config)
    try:
        return await hypervisor.inventory()
    finally:
        await hypervisor.close()


def _sizes(config: Config, contents: Contents) -> dict[str, VmSize]:
    """Return the size of each pool's VMs, by the assignment in the journal or, without one, by the file."""
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

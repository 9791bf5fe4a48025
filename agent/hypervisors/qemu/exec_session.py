"""An exec session in a QEMU guest that needs only the guest agent and a POSIX shell.

qemu-ga returns the output of a command only at its end, and a read from a file must not block qemu-ga. So the command
writes to two files in the guest, which the driver reads as they grow, and reads its input from a named pipe. For each
piece of input, a short-lived `cat` in the guest fills the pipe: it ends when the command has read enough, which is the
flow control. A shell starts the command, keeps the pipe open until the input ends, and returns the exit code.

The files stay in the guest until the command has ended, so the guest needs space for the whole output.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from agent.hypervisors.contract import GuestError
from agent.hypervisors.qemu.agent_messages import read_exit_code, read_file_data, read_handle, read_nothing, read_pid
from agent.hypervisors.sessions import OPEN_S, Output

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from agent.hypervisors.qemu.guest_agent import GuestAgent
    from agent.hypervisors.sessions import Signal

T = TypeVar("T")

READ_BYTES: Final = 192 << 10
"""How much of an output one request reads at most."""
WRITE_BYTES: Final = 256 << 10
"""How much input one request passes at most."""
FIRST_PAUSE_S: Final = 0.01
LAST_PAUSE_S: Final = 0.2
PAUSE_GROWTH: Final = 1.5
"""The pause between two polls for output grows by this factor while there is none, within these bounds."""
REPLY_S: Final = 15.0
"""How long a guest may take for one answer."""

_MAKE_FOLDER: Final = """
for parent in /var/tmp /tmp /run; do
    folder=$(mktemp -d "$parent/hearth-exec.XXXXXX" 2>/dev/null) && break
done
[ -n "$folder" ] || { echo "no folder to write to: /var/tmp, /tmp, /run" >&2; exit 1; }
mkfifo "$folder/in" && : >"$folder/stdout" && : >"$folder/stderr" && printf %s "$folder"
"""
"""Makes the files. Only their owner can access the folder, and its name cannot be guessed."""

_RUN: Final = """
folder=$1 input=$2
shift 2
if [ "$input" != /dev/null ]; then
    exec 8<>"$input"
    sleep 1000000 >/dev/null 2>&1 &
    echo "$!" >"$folder/holder"
fi
exec 9<"$input" 8>&-
(exec setsid sh -c 'echo "$$" >"$1/pid.new" && mv "$1/pid.new" "$1/pid"; shift; exec "$@"' sh "$folder" "$@" \
    <&9 >"$folder/stdout" 2>"$folder/stderr" 9<&-)
code=$?
[ ! -e "$folder/holder" ] || kill "$(cat "$folder/holder")"
exit "$code"
"""
"""Runs the command in a session of its own, which can be signalled as a whole, and in the foreground: a shell without
job control starts a background command with SIGINT and SIGQUIT ignored. Without the subshell, dash would report on the
stderr of the command that a signal killed it. A `sleep` keeps the pipe open."""

_END_INPUT: Final = """
until [ -s "$1/pid" ]; do sleep 1; done
[ ! -e "$1/holder" ] || kill "$(cat "$1/holder")" 2>/dev/null
"""
"""Ends the process that keeps the pipe open. It waits for the pid of the command, which is written last."""

_SIGNAL: Final = """
until [ -s "$1/pid" ]; do sleep 1; done
kill -s "$2" -- "-$(cat "$1/pid")" 2>/dev/null
"""
"""Signals the whole session of the command."""


class QemuExecSession:
    """A command in a QEMU guest; see `ExecSession`."""

    def __init__(self, agent: GuestAgent, folder: str, shell_pid: int) -> None:
        self._agent = agent
        self._folder = folder
        self._shell_pid = shell_pid
        self._handles: dict[str, int] = {}
        self._exit_code: int | None = None
        self._status_lock = asyncio.Lock()

    @property
    def exit_code(self) -> int | None:
        """See `ExecSession`."""
        return self._exit_code

    @classmethod
    async def start(cls, agent: GuestAgent, argv: tuple[str, ...], *, stdin: bool) -> QemuExecSession:
        """Start the command. Raises `GuestError`. On an error or a cancel, kills the command if it runs."""
        made = await agent.execute(("sh", "-c", _MAKE_FOLDER), timeout_s=OPEN_S)
        if made.exit_code:
            reason = made.stderr.decode(errors="replace").strip()
            raise GuestError(f"the guest has no space for a command's output: {reason}")
        folder = made.stdout.decode(errors="replace")
        script = ("-c", _RUN, "hearth-exec", folder, f"{folder}/in" if stdin else "/dev/null", *argv)
        pid = await agent.request("guest-exec", {"path": "sh", "arg": list(script)}, read_pid, timeout_s=OPEN_S)
        session = cls(agent, folder, pid)
        try:
            for stream in ("stdout", "stderr"):
                arguments: dict[str, object] = {"path": f"{folder}/{stream}", "mode": "r"}
                session._handles[stream] = await agent.request(
                    "guest-file-open", arguments, read_handle, timeout_s=REPLY_S
                )
        except BaseException:
            await asyncio.shield(session.close())
            raise
        return session

    async def output(self) -> AsyncGenerator[Output, None]:
        """See `ExecSession`."""
        pause_s = FIRST_PAUSE_S
        while True:
            has_ended = await self._has_ended()  # before the read: by then, the files hold all of the output
            new = [item for stream in self._handles if (item := await self._read(stream)).data]
            for item in new:
                yield item
            if new:
                pause_s = FIRST_PAUSE_S
                continue
            if has_ended:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * PAUSE_GROWTH, LAST_PAUSE_S)

    async def write(self, data: bytes) -> None:
        """See `ExecSession`. If the command does not read its input, blocks until the command ends."""
        for begin in range(0, len(data), WRITE_BYTES):
            if await self._has_ended():
                return
            piece = base64.b64encode(data[begin : begin + WRITE_BYTES]).decode()
            argv = ["-c", 'cat >"$1"', "hearth-exec", f"{self._folder}/in"]
            pid = await self._request("guest-exec", {"path": "sh", "arg": argv, "input-data": piece}, read_pid)
            pause_s = FIRST_PAUSE_S
            while await self._request("guest-exec-status", {"pid": pid}, read_exit_code) is None:
                if await self._has_ended():
                    return
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * PAUSE_GROWTH, LAST_PAUSE_S)

    async def end_input(self) -> None:
        """See `ExecSession`."""
        await self._run_unless_ended(_END_INPUT)

    async def signal(self, signal: Signal) -> None:
        """See `ExecSession`."""
        await self._run_unless_ended(_SIGNAL, signal)

    async def close(self) -> None:
        """See `ExecSession`."""
        with contextlib.suppress(GuestError):
            await self.signal("KILL")
            for handle in self._handles.values():
                await self._request("guest-file-close", {"handle": handle}, read_nothing)
            await self._agent.execute(("rm", "-rf", self._folder), timeout_s=REPLY_S)

    async def _run_unless_ended(self, script: str, *arguments: str) -> None:
        if not await self._has_ended():
            argv = ("sh", "-c", script, "hearth-exec", self._folder, *arguments)
            await self._agent.execute(argv, timeout_s=REPLY_S)

    async def _has_ended(self) -> bool:
        """Whether the command has ended. qemu-ga reports the end only once, so a lock guards query and result."""
        async with self._status_lock:
            if self._exit_code is None:
                self._exit_code = await self._request("guest-exec-status", {"pid": self._shell_pid}, read_exit_code)
            return self._exit_code is not None

    async def _read(self, stream: str) -> Output:
        arguments: dict[str, object] = {"handle": self._handles[stream], "count": READ_BYTES}
        return Output(cast("Any", stream), await self._request("guest-file-read", arguments, read_file_data))

    async def _request(self, command: str, arguments: dict[str, object], read: Callable[[object], T]) -> T:
        return await self._agent.request(command, arguments, read, timeout_s=REPLY_S)

"""A command in a guest that is followed while it runs, by nothing but the guest agent and a POSIX shell.

qemu-ga tells what a command wrote only at its end, and reads of its files must not block it. So the command writes into
two files of the guest, which are read as they grow, and reads from a named pipe. That pipe is filled by one short-lived
`cat` for each piece of input: it ends when the command has room for it, which is all the flow control there is. A shell
stands by the command: it keeps the pipe open until it is told of the input's end, and has its exit code.

The files stand in the guest until the command has ended: what a command writes must fit there.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from agent.hypervisors.contract import GuestError
from agent.hypervisors.qemu.guest_agent import exit_code_of
from agent.hypervisors.sessions import OPEN_S, Output

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from agent.hypervisors.qemu.guest_agent import GuestAgent
    from agent.hypervisors.sessions import Signal

READ_BYTES: Final = 192 << 10
"""What one question to the guest reads of an output at most."""
WRITE_BYTES: Final = 256 << 10
"""What one question to the guest gives as input at most."""
FIRST_PAUSE_S: Final = 0.01
LAST_PAUSE_S: Final = 0.2
SLOWER: Final = 1.5
"""How long to wait before the guest is asked again for output: longer each time there is none, within these bounds."""
ASK_S: Final = 15.0
"""How long a guest may take for one answer."""

_MAKE_ROOM: Final = """
for place in /var/tmp /tmp /run; do
    room=$(mktemp -d "$place/hearth-exec.XXXXXX" 2>/dev/null) && break
done
[ -n "$room" ] || { echo "no folder to write to: /var/tmp, /tmp, /run" >&2; exit 1; }
mkfifo "$room/in" && : >"$room/stdout" && : >"$room/stderr" && printf %s "$room"
"""
"""Makes the files. Their folder is for its owner only, and has a name nobody can foresee."""

_RUN: Final = """
room=$1 input=$2
shift 2
exec 8<>"$input"
trap 'exec 8>&-' USR1
setsid "$@" <"$input" >"$room/stdout" 2>"$room/stderr" 8>&- &
pid=$!
echo "$pid" >"$room/pid.new" && mv "$room/pid.new" "$room/pid"
while :; do
    wait "$pid"
    code=$?
    kill -0 "$pid" 2>/dev/null || exit "$code"
done
"""
"""Runs the command in a session of its own, which can be signalled as a whole. A `wait` that was only interrupted by
the end of the input finds the command still there."""

_TELL: Final = """
until [ -s "$1/pid" ]; do sleep 1; done
pid=$(cat "$1/pid")
until kill -s "$2" -- "${3:--$pid}" 2>/dev/null; do
    kill -0 "$pid" 2>/dev/null || exit 0
    sleep 1
done
"""
"""Signals the process that is named, else the whole session of the command: again when it has not become one yet."""


class GuestCommand:
    """One command in a QEMU guest; see `ExecSession`."""

    def __init__(self, agent: GuestAgent, room: str, shell_pid: int) -> None:
        self._agent = agent
        self._room = room
        self._shell_pid = shell_pid
        self._handles: dict[str, int] = {}
        self._exit_code: int | None = None
        self._asking = asyncio.Lock()

    @property
    def exit_code(self) -> int | None:
        """See `ExecSession`."""
        return self._exit_code

    @classmethod
    async def start(cls, agent: GuestAgent, argv: tuple[str, ...], *, stdin: bool) -> GuestCommand:
        """Start the command. Raises `GuestError`; then, or when cancelled, it is killed if it runs already."""
        made = await agent.execute(("sh", "-c", _MAKE_ROOM), timeout_s=OPEN_S)
        if made.exit_code:
            said = made.stderr.decode(errors="replace").strip()
            raise GuestError(f"the guest has no room for a command's output: {said}")
        room = made.stdout.decode()
        script = ("-c", _RUN, "hearth-exec", room, f"{room}/in" if stdin else "/dev/null", *argv)
        started = await agent.ask("guest-exec", {"path": "sh", "arg": list(script)}, timeout_s=OPEN_S)
        command = cls(agent, room, int(started["pid"]))
        try:
            for stream in ("stdout", "stderr"):
                named: dict[str, object] = {"path": f"{room}/{stream}", "mode": "r"}
                command._handles[stream] = await agent.ask("guest-file-open", named, timeout_s=ASK_S)
        except BaseException:
            await asyncio.shield(command.close())
            raise
        return command

    async def output(self) -> AsyncGenerator[Output, None]:
        """See `ExecSession`."""
        pause_s = FIRST_PAUSE_S
        while True:
            ended = await self._ended()  # asked first: what was written before that is in the files by now
            news = [item for stream in self._handles if (item := await self._read(stream)).data]
            for item in news:
                yield item
            if news:
                pause_s = FIRST_PAUSE_S
                continue
            if ended:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * SLOWER, LAST_PAUSE_S)

    async def write(self, data: bytes) -> None:
        """See `ExecSession`. Input that a command never reads is waited with until the command ends."""
        for begin in range(0, len(data), WRITE_BYTES):
            if await self._ended():
                return
            piece = base64.b64encode(data[begin : begin + WRITE_BYTES]).decode()
            argv = ["-c", 'cat >"$1"', "hearth-exec", f"{self._room}/in"]
            given = await self._ask("guest-exec", {"path": "sh", "arg": argv, "input-data": piece})
            pause_s = FIRST_PAUSE_S
            while not (await self._ask("guest-exec-status", {"pid": given["pid"]}))["exited"]:
                if await self._ended():
                    return
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * SLOWER, LAST_PAUSE_S)

    async def end_input(self) -> None:
        """See `ExecSession`."""
        await self._tell("USR1", str(self._shell_pid))

    async def signal(self, signal: Signal) -> None:
        """See `ExecSession`."""
        await self._tell(signal)

    async def close(self) -> None:
        """See `ExecSession`."""
        with contextlib.suppress(GuestError):
            await self._tell("KILL")
            for handle in self._handles.values():
                await self._ask("guest-file-close", {"handle": handle})
            await self._agent.execute(("rm", "-rf", self._room), timeout_s=ASK_S)

    async def _tell(self, signal: Literal["USR1"] | Signal, process: str = "") -> None:
        if not await self._ended():
            argv = ("sh", "-c", _TELL, "hearth-exec", self._room, signal, process)
            await self._agent.execute(argv, timeout_s=ASK_S)

    async def _ended(self) -> bool:
        """Whether the command has ended. The guest tells that only once, so one asks at a time, and it is kept."""
        async with self._asking:
            if self._exit_code is None:
                status = await self._ask("guest-exec-status", {"pid": self._shell_pid})
                self._exit_code = exit_code_of(status) if status["exited"] else None
            return self._exit_code is not None

    async def _read(self, stream: str) -> Output:
        asked: dict[str, object] = {"handle": self._handles[stream], "count": READ_BYTES}
        answer = await self._ask("guest-file-read", asked)
        return Output(cast("Any", stream), base64.b64decode(answer["buf-b64"]))

    async def _ask(self, command: str, arguments: dict[str, object]) -> Any:  # noqa: ANN401 - JSON
        return await self._agent.ask(command, arguments, timeout_s=ASK_S)

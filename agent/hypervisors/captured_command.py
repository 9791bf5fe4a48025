"""Commands that run to their end with the same result on every driver.

The guest agents differ in three ways: a missing program is an error or an exit code, a name can be a program or a
builtin of a shell, and the end of a command is its own end or that of the last process that holds its output open. So a
shell in the guest starts the command, which writes to unnamed files: whatever it leaves running holds only those.
"""

from __future__ import annotations

from typing import Final

from agent.hypervisors.contract import ExecResult

OUTPUT_LIMIT_BYTES: Final = 1 << 20
"""How much of each output stream is returned at most."""
_SCRIPT: Final = f"""
exec 3>&2 2>/dev/null </dev/null
for parent in /var/tmp /tmp /run; do
    folder=$(mktemp -d "$parent/hearth-run.XXXXXX") && break
done
[ -n "$folder" ] || exec /bin/sh -c 'exec "$@"' sh "$@" 2>&3 3>&-
exec 4>"$folder/stdout" 5>"$folder/stderr" 6<"$folder/stdout" 7<"$folder/stderr"
rm -rf "$folder"
(exec /bin/sh -c 'exec "$@"' sh "$@" >&4 2>&5 3>&- 4>&- 5>&- 6<&- 7<&-)
code=$?
head -c {OUTPUT_LIMIT_BYTES + 1} <&6
head -c {OUTPUT_LIMIT_BYTES + 1} <&7 >&3
exit "$code"
"""
"""Runs a command, which never is a builtin of the shell. Without space for its output the command writes it directly.
The shell reports a command that a signal killed on its own stderr, which is closed; without the subshell, dash would
report it on that of the command."""


def capture(argv: tuple[str, ...]) -> tuple[str, ...]:
    """Return the command that runs `argv`: it ends when `argv` ends, with its output and exit code.

    That is 127 for a missing program, 126 for one that cannot be executed, and 128 + signal for a killed one.
    """
    return ("/bin/sh", "-c", _SCRIPT, "hearth-run", *argv)


def bounded_result(exit_code: int, stdout: bytes, stderr: bytes, *, truncated: bool = False) -> ExecResult:
    """Return a result with the beginning of each output."""
    return ExecResult(
        exit_code,
        stdout[:OUTPUT_LIMIT_BYTES],
        stderr[:OUTPUT_LIMIT_BYTES],
        truncated=truncated or max(len(stdout), len(stderr)) > OUTPUT_LIMIT_BYTES,
    )

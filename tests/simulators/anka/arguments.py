"""The command line of `anka`: words, flags, and options with a value. The options differ between commands."""

from __future__ import annotations

from typing import Final

from tests.simulators.anka.state import AnkaFailure

TAG: Final = {"-t": "--tag", "--tag": "--tag"}
CREDENTIALS: Final = {name: name for name in ("--cert", "--key", "--cacert", "--api-key-id", "--api-key")}
VALUED: Final[dict[str, dict[str, str]]] = {
    "list": {"-f": "--field", "--field": "--field"},
    "show": TAG,
    "clone": TAG,
    "delete": TAG,
    "pull": {**TAG, "-o": "--oci-version", "--oci-version": "--oci-version"},
    "modify": {"-c": "--cores", "--cores": "--cores", "--set-name": "--set-name"},
    "license": {"-k": "--key"},
    "registry": {
        **TAG, **CREDENTIALS, "-r": "--remote", "--remote": "--remote", "-o": "--oci-version",
        "--oci-version": "--oci-version", "-p": "--prefix", "--prefix": "--prefix", "-u": "--user", "--user": "--user",
    },
}  # fmt: skip


class Arguments:
    """The parsed arguments. For `run` only the first word belongs to `anka`; the rest is the guest's command."""

    def __init__(self, command: str, argv: list[str], *, machine_readable: bool) -> None:
        self.command = command
        self.words: list[str] = []
        self.flags: set[str] = set()
        self.options: dict[str, str] = {}
        self.machine_readable = machine_readable
        valued, rest = VALUED.get(command, {}), list(argv)
        while rest:
            word = rest.pop(0)
            if word.startswith("-o") and len(word) > 2 and not word.startswith("--"):
                word, rest = "-o", [word[2:], *rest]
            if not word.startswith("-"):
                self.words.append(word)
                if command == "run":
                    self.words += rest
                    return
            elif word in valued:
                if not rest:
                    raise AnkaFailure(f"{word} needs a value", exit_code=2)
                self.options[valued[word]] = rest.pop(0)
            else:
                self.flags.add(word)

    def word(self, number: int, what: str) -> str:
        """Return a required word. Raises `AnkaFailure`."""
        if len(self.words) <= number:
            raise AnkaFailure(f"missing argument: {what}", exit_code=2)
        return self.words[number]

    def has(self, *names: str) -> bool:
        """Whether the command line has one of these flags."""
        return any(name in self.flags for name in names)

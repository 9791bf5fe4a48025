"""Arguments as Swift's ArgumentParser takes them: flags anywhere, `--key value` or `--key=value`, exit code 64."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.simulators.tartsim.errors import UsageError


@dataclass
class Arguments:
    """The parsed command line."""

    flags: set[str] = field(default_factory=set)
    options: dict[str, list[str]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    def option(self, key: str, default: str) -> str:
        """The last value of an option."""
        return self.options.get(key, [default])[-1]

    def number(self, key: str, default: int) -> int:
        """The last value of an option that must be a number."""
        text = self.option(key, str(default))
        if not text.isdigit():
            raise UsageError(f"The value '{text}' is invalid for '{key} <{key.lstrip('-')}>'")
        return int(text)


def parse(argv: list[str], *, flags: str = "", options: str = "", names: int, passthrough: bool = False) -> Arguments:
    """Parse a command line with `names` positional arguments; -1: one or more. `passthrough` keeps the rest."""
    known_flags, known_options = set(flags.split()), set(options.split())
    found, rest = Arguments(), list(argv)
    while rest:
        argument = rest.pop(0)
        key, equals, value = argument.partition("=")
        if not argument.startswith("-"):
            found.names.append(argument)
            if passthrough:
                found.names += rest
                break
        elif argument in known_flags:
            found.flags.add(argument)
        elif key in known_options and (equals or rest):
            found.options.setdefault(key, []).append(value if equals else rest.pop(0))
        elif key in known_options:
            raise UsageError(f"Missing value for '{key} <{key.lstrip('-')}>'")
        else:
            raise UsageError(f"Unknown option '{argument}'")
    if len(found.names) < abs(names):
        raise UsageError("Missing expected argument '<name>'")
    if names >= 0 and not passthrough and len(found.names) > names:
        raise UsageError(f"Unexpected argument '{found.names[names]}'")
    return found

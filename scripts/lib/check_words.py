"""Find idioms in docstrings, comments, CLI help, docs and names, and count them by package.

    python scripts/lib/check_words.py             fail when a package has too many; scripts/check runs this
    python scripts/lib/check_words.py --count     a table of the counts by package
    python scripts/lib/check_words.py PATH...     every idiom in these files or folders, as FILE:LINE: IDIOM: TEXT

The idioms, their plain words and their exceptions are in idioms.toml.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
import tomllib
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

REPOSITORY: Final = Path(__file__).resolve().parents[2]
IDIOMS: Final = Path(__file__).with_name("idioms.toml")
PER_1000: Final = 1.0
# A package of a few hundred words may have this many idioms in its prose.
ALWAYS_ALLOWED: Final = 1

Kind = Literal["prose", "name"]
_SOURCES: Final = ("agent/**/*.py", "tests/**/*.py", "scripts/**/*", "docs/**/*.md", "README.md", "CHANGELOG.md")
# Prose under these is counted, and never refused: only the names are.
_NAMES_ONLY: Final = ("tests",)
_QUOTED: Final = re.compile(r"`+[^`]*`+|\"[^\"\n]*\"|https?://\S+")
_CODE_BLOCK: Final = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_PROSE_WORD: Final = re.compile(r"[A-Za-z][A-Za-z'-]*")


@dataclass(frozen=True)
class Idiom:
    """One pattern of idioms.toml."""

    match: re.Pattern[str]
    use: str
    exceptions: tuple[re.Pattern[str], ...]
    allow_in: tuple[str, ...]
    names_only: bool

    def find(self, text: str) -> Iterator[re.Match[str]]:
        """Yield the matches in `text` that are not part of an allowed term."""
        allowed = [found.span() for pattern in self.exceptions for found in pattern.finditer(text)]
        for found in self.match.finditer(text):
            if not any(start <= found.start() and found.end() <= end for start, end in allowed):
                yield found


@dataclass(frozen=True)
class Text:
    """A piece of prose, or a name with its words set apart, and the line where it begins."""

    kind: Kind
    line: int
    text: str


@dataclass(frozen=True)
class Hit:
    """One idiom found."""

    kind: Kind
    path: Path
    line: int
    idiom: str
    use: str
    text: str


@dataclass
class Count:
    """What one package has: words of prose, idioms in them, and idioms in names."""

    words: int = 0
    prose: int = 0
    names: int = 0
    files: list[Path] = field(default_factory=list)

    @property
    def per_1000(self) -> float:
        """Return the idioms in 1,000 words of prose."""
        return 1000 * self.prose / self.words if self.words else 0.0

    def is_over(self, *, names_only: bool) -> bool:
        """Return whether the package has more idioms than it may have. A name may have none."""
        too_many = self.prose > max(ALWAYS_ALLOWED, self.words * PER_1000 / 1000)
        return self.names > 0 or (too_many and not names_only)


@cache
def load_idioms() -> tuple[Idiom, ...]:
    """Return the idioms of idioms.toml, compiled."""

    def whole_words(pattern: str) -> re.Pattern[str]:
        return re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])", re.IGNORECASE)

    return tuple(
        Idiom(
            whole_words(row["match"]),
            row["use"],
            tuple(whole_words(pattern) for pattern in row.get("except", ())),
            tuple(row.get("allow_in", ())),
            row.get("names", False),
        )
        for row in tomllib.loads(IDIOMS.read_text(encoding="utf-8"))["idiom"]
    )


def package_of(path: Path) -> str:
    """Return the package that a file, relative to the repository, is counted in: `agent/cli`, `docs`, `README.md`."""
    if path.parts[0] in {"docs", "scripts"} or len(path.parts) == 1:
        return path.parts[0]
    return "/".join(path.parts[:2]) if len(path.parts) > 2 else path.parts[0]


def _blank(found: re.Match[str]) -> str:
    """Return what replaces quoted text: as many lines, no words."""
    return "_" + "\n" * found.group().count("\n")


def _prose(line: int, text: str) -> Text:
    return Text("prose", line, _QUOTED.sub(_blank, text))


def _name(line: int, name: str) -> Text:
    return Text("name", line, _CAMEL.sub(" ", name).replace("_", " ").strip())


def read_python(source: str, module: str) -> Iterator[Text]:
    """Yield docstrings, comments, `help=` strings, and the names that a Python file defines."""
    yield _name(1, module)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield _name(node.lineno, node.name)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module) and (
            docstring := ast.get_docstring(node, clean=False)
        ):
            yield _prose(node.body[0].lineno, docstring)
        if isinstance(node, ast.keyword) and node.arg in {"help", "short_help", "epilog"}:
            yield _prose(node.value.lineno, "".join(_constants(node.value)))
    yield from _comments(
        (token.start[0], token.string)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    )


def _constants(node: ast.expr) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def _comments(lines: Iterable[tuple[int, str]]) -> Iterator[Text]:
    """Yield comments, joining those on consecutive lines: a sentence may continue on the next line."""
    begin = end = 0
    joined: list[str] = []
    for number, line in lines:
        if joined and number != end + 1:
            yield _prose(begin, "\n".join(joined))
            joined = []
        if not joined:
            begin = number
        joined.append(line.strip().lstrip("#").strip())
        end = number
    if joined:
        yield _prose(begin, "\n".join(joined))


def read_shell(source: str) -> Iterator[Text]:
    """Yield the comments of a shell script or another file with `#` comments that are lines of their own."""
    lines = enumerate(source.splitlines(), 1)
    yield from _comments((number, line) for number, line in lines if line.lstrip().startswith("# "))


def read_file(path: Path) -> list[Text]:
    """Return the texts and names of one file; none for a file that is neither Python, Markdown nor a script."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return list(read_python(source, path.stem))
    if path.suffix == ".md":
        return [_prose(1, _CODE_BLOCK.sub(_blank, source))]
    return list(read_shell(source)) if source.startswith("#!") else []


def find_hits(path: Path, texts: Iterable[Text]) -> Iterator[Hit]:
    """Yield the idioms in the texts of a file, whose path is relative to the repository."""
    for text in texts:
        for idiom in load_idioms():
            if (idiom.names_only and text.kind != "name") or any(_is_under(path, glob) for glob in idiom.allow_in):
                continue
            # A line break becomes a space, so that an idiom is found on either side of it.
            flat = re.sub(r"\n(?=\n)", "\0", text.text).replace("\n", " ").replace("\0", "\n")
            for found in idiom.find(flat):
                line = text.line + text.text.count("\n", 0, found.start())
                yield Hit(text.kind, path, line, found.group().lower(), idiom.use, _around(flat, found))


def _is_under(path: Path, glob: str) -> bool:
    folder = glob.removesuffix("/**")
    return path.match(glob) if folder == glob else path.is_relative_to(folder)


def _around(text: str, found: re.Match[str]) -> str:
    start, end = max(0, found.start() - 50), min(len(text), found.end() + 50)
    return " ".join(text[start:end].split())


def source_files(repository: Path, sources: Iterable[str] = _SOURCES) -> Iterator[Path]:
    """Yield the files to check, relative to the repository."""
    for pattern in sources:
        for path in sorted(repository.glob(pattern)):
            if path.is_file() and (path.suffix in {".py", ".md"} or _is_script(path)):
                yield path.relative_to(repository)


def _is_script(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def count_packages(repository: Path) -> dict[str, Count]:
    """Count words and idioms of every package."""
    counts: dict[str, Count] = defaultdict(Count)
    for path in source_files(repository):
        count = counts[package_of(path)]
        texts = read_file(repository / path)
        count.words += sum(len(_PROSE_WORD.findall(text.text)) for text in texts if text.kind == "prose")
        for hit in find_hits(path, texts):
            if hit.kind == "name":
                count.names += 1
            else:
                count.prose += 1
    return dict(counts)


def word_errors(repository: Path) -> list[str]:
    """Return an error for each package over the limit."""
    errors: list[str] = []
    for package, count in sorted(count_packages(repository).items()):
        if count.is_over(names_only=package.partition("/")[0] in _NAMES_ONLY):
            found = f"{count.prose} idioms in {count.words} words and {count.names} in names"
            errors.append(f"{package}: {found}: python scripts/lib/check_words.py {package}")
    return errors


def _table(counts: dict[str, Count]) -> Iterator[str]:
    yield f"{'package':<22} {'words':>7} {'idioms':>7} {'per 1,000':>10} {'in names':>9}"
    total = Count()
    for package, count in sorted(counts.items()):
        yield f"{package:<22} {count.words:>7} {count.prose:>7} {count.per_1000:>10.1f} {count.names:>9}"
        total.words, total.prose = total.words + count.words, total.prose + count.prose
        total.names += count.names
    yield f"{'all':<22} {total.words:>7} {total.prose:>7} {total.per_1000:>10.1f} {total.names:>9}"


def _hits_under(repository: Path, paths: Iterable[str]) -> Iterator[Hit]:
    roots = [Path(path).resolve() for path in paths]
    for path in source_files(repository):
        if any((repository / path).is_relative_to(root) for root in roots):
            yield from find_hits(path, read_file(repository / path))


def main() -> int:
    """Run the command line; return 1 when a package has too many idioms."""
    usage = "\n".join(takewhile(lambda line: "idioms.toml" not in line, (__doc__ or "").splitlines()))
    parser = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", metavar="PATH", help="Print every idiom in this file or folder.")
    parser.add_argument("--count", action="store_true", help="Print a table of the counts by package.")
    arguments = parser.parse_args()
    if arguments.count:
        sys.stdout.writelines(f"{line}\n" for line in _table(count_packages(REPOSITORY)))
        return 0
    if arguments.paths:
        for hit in _hits_under(REPOSITORY, arguments.paths):
            sys.stdout.write(f"{hit.path}:{hit.line}: {hit.idiom}: {hit.text}  [{hit.use}]\n")
        return 0
    errors = word_errors(REPOSITORY)
    sys.stderr.writelines(f"{error}\n" for error in errors)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())

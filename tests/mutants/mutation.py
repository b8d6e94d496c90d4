"""One fault: what it is, where the text changes, and which tests must notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class SnippetMoved(Exception):
    """The code moved on: the mutation no longer says what it would change."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """`old` stands in `file` exactly once and becomes `new`."""

    file: str
    old: str
    new: str

    def applied(self, text: str) -> str:
        """The changed text.

        Raises:
            SnippetMoved: `old` occurs never or more than once, or `new` changes nothing.
        """
        found = text.count(self.old)
        if found != 1 or self.old == self.new:
            raise SnippetMoved(
                f"{self.file}: {self.old!r} occurs {found} times. Write down the line as it "
                "is now, or the same fault in the new code."
            )
        return text.replace(self.old, self.new)


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """`id` is the row of privacy.md 17 and a letter; `killers` are pytest node ids."""

    id: str
    text: str
    edits: tuple[Edit, ...]
    killers: tuple[str, ...]

    @property
    def row(self) -> str:
        return self.id.rstrip("abcdefgh")

    def changed_files(self, root: Path) -> dict[Path, str]:
        """New content per file below `root`; several edits of one file add up.

        Raises:
            SnippetMoved: an edit does not apply.
        """
        changed: dict[Path, str] = {}
        for edit in self.edits:
            path = root / edit.file
            text = changed.get(path)
            changed[path] = edit.applied(path.read_text("utf-8") if text is None else text)
        return changed


def mutant(
    id: str, text: str, file: str, old: str, new: str, killers: str, *more: tuple[str, str, str]
) -> Mutant:
    """A mutant of `dp_core/<file>`; `more` holds further (file, old, new).

    `killers`: node ids below tests/dp_core, separated by blanks.
    """
    edits = [Edit(file=f"dp_core/{f}", old=o, new=n) for f, o, n in ((file, old, new), *more)]
    return Mutant(
        id=id,
        text=text,
        edits=tuple(edits),
        killers=tuple(f"tests/dp_core/{k}" for k in killers.split()),
    )

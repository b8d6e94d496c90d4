"""Public corpora that play the part of private ones: three disjoint sets of patients each.

====================  ==================================  ===========  ==================
corpus                training                            tuning       test
====================  ==================================  ===========  ==================
diabetes130           first notes of split `train`        `valid`      `test`
mts_dialog            `train` without its last 200        `valid`      those last 200
====================  ==================================  ===========  ==================

One note is one patient: Diabetes-130 holds one a patient, for MTS-Dialog it is stated.
Learning rates are chosen on `tuning`; tables tell `test`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.errors import SettingInvalid

MTS_TEST_NOTES = 200


@dataclass(frozen=True, kw_only=True)
class Note:
    """A public note and the patient it belongs to."""

    patient: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Notes by their use; no patient is in two of them."""

    name: str
    training: tuple[Note, ...]
    tuning: tuple[Note, ...]
    test: tuple[Note, ...]
    has_slots: bool

    def __post_init__(self) -> None:
        parts = [{n.patient for n in p} for p in (self.training, self.tuning, self.test)]
        if len(set.union(*parts)) != sum(map(len, parts)):
            raise SettingInvalid("corpus", "a patient is in two of training, tuning and test")


def load_corpus(name: str, folder: Path) -> Corpus:
    """Reads a corpus from the folder that holds all of them.

    Raises:
        SettingInvalid: an unknown name, or its file is not there.
    """
    if name not in _LOADERS:
        raise SettingInvalid("corpus", f"choose one of {', '.join(_LOADERS)}")
    return _LOADERS[name](folder)


def _diabetes130(folder: Path) -> Corpus:
    by_split: dict[str, list[Note]] = {"train": [], "valid": [], "test": []}
    for row in _rows(folder / "diabetes130" / "notes_dev.jsonl.gz"):
        by_split[row["split"]].append(Note(patient=row["patient"], text=row["text"]))
    return Corpus(
        name="diabetes130",
        training=tuple(by_split["train"]),
        tuning=tuple(by_split["valid"]),
        test=tuple(by_split["test"]),
        has_slots=True,
    )


def _mts_dialog(folder: Path) -> Corpus:
    by_split: dict[str, list[Note]] = {"train": [], "valid": []}
    for row in _rows(folder / "mts_dialog" / "mts_dialog_dev.jsonl.gz"):
        by_split[row["split"]].append(Note(patient=row["id"], text=row["text"]))
    return Corpus(
        name="mts_dialog",
        training=tuple(by_split["train"][:-MTS_TEST_NOTES]),
        tuning=tuple(by_split["valid"]),
        test=tuple(by_split["train"][-MTS_TEST_NOTES:]),
        has_slots=False,
    )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise SettingInvalid(
            "data", f"no file {path.parent.name}/{path.name}; name the corpora's folder by --data"
        )
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


_LOADERS: dict[str, Callable[[Path], Corpus]] = {
    "diabetes130": _diabetes130,
    "mts_dialog": _mts_dialog,
}
CORPORA = tuple(_LOADERS)

"""What a witness keeps: its name, its key, the logs it knows, what it has signed."""

from __future__ import annotations

import re
from pathlib import Path

from service.keyfiles import signing_key
from service.ledger import notes
from service.witness.server import Witness

KEY_FILE, NAME_FILE, LOGS_FILE = "witness.pem", "name", "logs"


class WitnessFolderInvalid(ValueError):
    """The folder belongs to no witness, or to another one."""


def prepare(folder: Path, name: str) -> notes.VerifierKey:
    """Makes the folder with a key, once; the vkey for those who shall trust it.

    Raises:
        WitnessFolderInvalid: it belongs to a witness of another name.
    """
    if not re.fullmatch(r"[A-Za-z0-9._/-]{1,255}", name):
        raise WitnessFolderInvalid("A name is letters, digits and ._/- such as example.org/w1.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / NAME_FILE
    if path.exists() and path.read_text(encoding="utf-8").strip() != name:
        raise WitnessFolderInvalid("The folder belongs to a witness of another name.")
    path.write_text(f"{name}\n", encoding="utf-8")
    return notes.public_key(name, notes.COSIGNER_KEY, signing_key(folder / KEY_FILE))


def trust(folder: Path, vkey: str, *, rotation: str | None = None) -> notes.VerifierKey:
    """Adds a log, by the vkey its operator hands over. An origin gets a second key only by a
    `rotation` statement that the newest known key and the new one have signed.

    Raises:
        WitnessFolderInvalid: no log's vkey, or its origin is known with another key.
    """
    try:
        key = notes.parse_verifier_key(vkey)
    except notes.NoteInvalid:
        key = None
    if key is None or key.kind != notes.LOG_KEY:
        raise WitnessFolderInvalid("Not the vkey of a log; `rldp ledger vkey` prints it.")
    known = _logs(folder)
    if key in known:
        return key
    before = [other for other in known if other.name == key.name]
    if before and not _follows(before[-1], key, rotation):
        raise WitnessFolderInvalid(
            "This origin is known with another key. A next key needs --rotation with a statement "
            "that both keys have signed."
        )
    with (folder / LOGS_FILE).open("a", encoding="utf-8") as stream:
        stream.write(f"{key.text}\n")
    return key


def _follows(old: notes.VerifierKey, new: notes.VerifierKey, rotation: str | None) -> bool:
    if rotation is None:
        return False
    try:
        note = notes.parse_note(rotation)
    except notes.NoteInvalid:
        return False
    text = notes.rotation_text(
        origin=old.name, role="log", old=old.public.hex(), new=new.public.hex()
    )
    return note.text == text and all(notes.is_signed_by(note, key) for key in (old, new))


def open_witness(folder: Path) -> Witness:
    """The witness of a prepared folder.

    Raises:
        WitnessFolderInvalid: it was not prepared.
        SigningKeyUnusable: its key is missing.
    """
    path = folder / NAME_FILE
    if not path.exists():
        raise WitnessFolderInvalid("Not a witness's folder; make one with `rldp witness init`.")
    return Witness(
        name=path.read_text(encoding="utf-8").strip(),
        key=signing_key(folder / KEY_FILE, make=False),
        logs=_logs(folder),
        folder=folder,
    )


def _logs(folder: Path) -> list[notes.VerifierKey]:
    path = folder / LOGS_FILE
    lines = path.read_text(encoding="utf-8").split() if path.exists() else []
    return [notes.parse_verifier_key(line) for line in lines]

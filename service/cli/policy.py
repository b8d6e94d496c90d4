"""What outsiders must hold to check this deployment: its vkey, and the auditor's policy."""

from __future__ import annotations

import json
import os
from pathlib import Path

import typer

from service.ledger import notes
from service.ledger.checkpoints import system_origin
from service.ledger.keys import load_keys
from service.ledger.witnesses import load_witnesses
from service.settings import Settings

FORMAT = "dp-ledger-policy/1"


def print_vkey(settings: Settings, *, recovery: int = 0) -> None:
    """The vkey of the system log, for the witnesses that shall watch it."""
    keys = load_keys(settings)
    origin = system_origin(keys, recovery)
    typer.echo(notes.public_key(origin, notes.LOG_KEY, keys.log).text)


def write_policy(settings: Settings, *, out: Path, max_age_seconds: int, recovery: int = 0) -> None:
    """Writes `policy.json`: log and receipt keys, witnesses, quorum, maximum age.

    Raises:
        typer.BadParameter: the file exists.
    """
    keys = load_keys(settings)
    policy = {
        "format": FORMAT,
        "log_key": keys.log_public,
        "max_age_seconds": max_age_seconds,
        "previous_required": False,
        "quorum": settings.witness_quorum,
        "receipt_key": keys.receipt_public,
        "system_origin": system_origin(keys, recovery),
        "witnesses": [witness.key.text for witness in load_witnesses(settings.witnesses)],
    }
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        raise typer.BadParameter(f"{out} exists; choose another name.") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as target:
        target.write(json.dumps(policy, indent=1, sort_keys=True) + "\n")
    typer.echo(f"Wrote {out}. Hand it to auditors in person: it is what they trust.")

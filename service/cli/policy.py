"""What outsiders must hold to check this deployment: its vkey, and the auditor's policy."""

from __future__ import annotations

import json
import os
from pathlib import Path

import typer

from service.ledger import notes
from service.ledger.anchors import load_tsa, pinned
from service.ledger.checkpoints import system_origin
from service.ledger.keys import load_keys, planned_log_key
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

    It pins every log key of this deployment, the first as `log_key`, and a prepared one too.

    Raises:
        typer.BadParameter: the file exists.
    """
    keys, planned = load_keys(settings), planned_log_key(settings)
    first, *following = [*keys.log_chain, *([planned] if planned else [])]
    tsa = load_tsa(settings)
    policy = {
        "format": FORMAT,
        "log_key": first,
        "max_age_seconds": max_age_seconds,
        "previous_required": False,
        "quorum": settings.witness_quorum,
        "receipt_key": keys.receipt_public,
        "system_origin": system_origin(keys, recovery),
        **({"next_log_keys": following} if following else {}),
        **({"tsa_certificates": pinned(tsa.certificates)} if tsa else {}),
        "witnesses": [witness.key.text for witness in load_witnesses(settings.witnesses)],
    }
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        raise typer.BadParameter(f"{out} exists; choose another name.") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as target:
        target.write(json.dumps(policy, indent=1, sort_keys=True) + "\n")
    typer.echo(f"Wrote {out}. Hand it to auditors in person: it is what they trust.")

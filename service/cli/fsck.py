"""`rldp ledger fsck`: every invariant from the rows, personal details and time stamps included."""

from __future__ import annotations

import typer

from service.database import Database
from service.keyfiles import SigningKeyUnusable
from service.ledger.anchors import TsaFileInvalid, load_tsa
from service.ledger.disclosures import Vault
from service.ledger.errors import DisclosuresUnavailable
from service.ledger.fsck import check_all
from service.settings import Settings


def check_ledger(settings: Settings) -> int:
    """Prints each finding; 1 if there is one, else 0.

    Raises:
        typer.BadParameter: a key or a file of certificates that the check needs is unusable.
    """
    database = Database(settings.resolved_database_url)
    vault = Vault(settings.keys_dir, make=False)
    try:
        tsa = load_tsa(settings)
        with database.snapshot() as session:
            certificates = () if tsa is None else tsa.certificates
            findings = check_all(session, vault=vault, certificates=certificates)
    except (DisclosuresUnavailable, SigningKeyUnusable, TsaFileInvalid) as problem:
        raise typer.BadParameter(str(problem)) from None
    finally:
        database.dispose()
    for one in findings:
        typer.echo(f"{one.invariant} {one.subject}: {one.problem}")
    typer.echo(f"{len(findings)} findings" if findings else "Every invariant holds.")
    return 1 if findings else 0

"""`rldp ledger rotate-key`: change the log's key or the receipt key, on the host of the keys."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from service.ledger.publisher import Publisher
    from service.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Change the log's key, or the key of receipts.")

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Where everything is kept. Default: RLDP_DATA_DIR, or .rldp."),
]


@contextmanager
def _opened(data_dir: Path | None) -> Iterator[tuple[Settings, Publisher]]:
    """Raises typer.BadParameter in the words of whatever refuses."""
    from service.cli.options import chosen_settings
    from service.database import Database
    from service.keyfiles import SigningKeyUnusable
    from service.ledger.errors import LedgerError
    from service.ledger.publisher import make_publisher

    settings = chosen_settings(data_dir=data_dir)
    database = Database(settings.resolved_database_url)
    try:
        yield settings, make_publisher(settings, database)
    except (LedgerError, SigningKeyUnusable) as problem:
        raise typer.BadParameter(str(problem)) from None
    finally:
        database.dispose()


@app.command("prepare")
def prepare(
    out: Annotated[Path, typer.Option(help="The statement to write, for witnesses.")],
    data_dir: DataDir = None,
) -> None:
    """Make the next key and the statement, signed by both keys, by which witnesses pin it."""
    from service.ledger import checkpoints, notes, rotation
    from service.ledger.keys import next_log_key

    with _opened(data_dir) as (settings, publisher):
        new = next_log_key(settings, make=True)
        with publisher.db.reading() as session:
            origin = checkpoints.present_origin(session, publisher.keys)
        try:
            descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            raise typer.BadParameter(f"{out} exists; choose another name.") from None
        with os.fdopen(descriptor, "w", encoding="utf-8") as target:
            target.write(rotation.statement(publisher.keys, new, origin).full)
        vkey = notes.public_key(origin, notes.LOG_KEY, new).text
    typer.echo(f"Each witness: rldp witness trust --rotation {out} '{vkey}', then serve again.")
    typer.echo("Each auditor: a new policy from rldp ledger policy. Then: rotate-key activate.")


@app.command("activate")
def activate(data_dir: DataDir = None) -> None:
    """Enter the prepared key in every log and sign with it from now on. Safe to repeat."""
    from service.ledger import checkpoints, rotation
    from service.ledger.keys import adopt_next_log_key, next_log_key

    with _opened(data_dir) as (settings, publisher):
        new = next_log_key(settings, make=False)
        with publisher.db.reading() as session:
            origin = checkpoints.present_origin(session, publisher.keys)
        known = rotation.pinned_by(publisher.db, publisher.witnesses, origin, new, publisher.post)
        rotation.require_pinned(known, publisher.quorum)
        with publisher.db.transaction() as session:
            logs = rotation.enter_log_key(session, publisher.keys, new)
        adopt_next_log_key(settings)
        publisher.turn()
    typer.echo(f"The new key signs {logs} logs. Hand auditors a new policy if you have not.")


@app.command("receipts")
def receipts(data_dir: DataDir = None) -> None:
    """Make a new key for receipts and certify it in every log by the log's key."""
    from service.ledger import rotation
    from service.ledger.keys import adopt_next_receipt_key, next_receipt_key

    with _opened(data_dir) as (settings, publisher):
        new = next_receipt_key(settings)
        with publisher.db.transaction() as session:
            logs = rotation.enter_receipt_key(session, publisher.keys, new)
        adopt_next_receipt_key(settings)
        publisher.turn()
    typer.echo(f"Certified in {logs} logs. Auditors need no new policy.")

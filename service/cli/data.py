"""`rldp data`: keys of stored files, on the host where the data and the keys lie."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from service.database import Database
    from service.settings import Settings

app = typer.Typer(
    no_args_is_help=True, help="Encryption of stored files: state, key rotation, erasure."
)

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Where everything is kept. Default: RLDP_DATA_DIR, or .rldp."),
]


@contextmanager
def _opened(data_dir: Path | None) -> Iterator[tuple[Settings, Database]]:
    """Raises typer.BadParameter in the words of whatever refuses."""
    from service.cli.options import chosen_settings
    from service.database import Database
    from service.sealing.errors import SealError

    settings = chosen_settings(data_dir=data_dir)
    database = Database(settings.resolved_database_url)
    try:
        yield settings, database
    except SealError as problem:
        raise typer.BadParameter(str(problem)) from None
    finally:
        database.dispose()


@app.command("status")
def status(data_dir: DataDir = None) -> None:
    """Which data keys are in the folder, and how many hospitals' keys each one wraps."""
    from service.sealing import keyring
    from service.sealing.master import MasterKeys

    with _opened(data_dir) as (settings, database):
        masters = MasterKeys.of(settings)
        with database.reading() as session:
            wrapped = dict(keyring.in_use(session))
        here = {masters.present().id: "present"}
        here |= {key.id: "retired" for key in masters.retired() if key.id not in here}
    for key_id in sorted(here.keys() | wrapped.keys()):
        state = here.get(key_id, "MISSING: put it into data.retired")
        typer.echo(f"{key_id}  {state}, wraps the keys of {wrapped.get(key_id, 0)} hospitals")


@app.command("encrypt")
def encrypt(data_dir: DataDir = None) -> None:
    """Encrypt uploads, checkpoints and adapters that a release before stored in clear.

    Safe to stop and to repeat. Jobs that run now are left: run it again after them.
    Exit code 1: something is left.
    """
    from service.jobs.at_rest import seal_old_files

    with _opened(data_dir) as (settings, database):
        done = seal_old_files(database, settings)
    typer.echo(f"Encrypted {done.uploads} uploads and {done.job_files} files of jobs.")
    for job_id in done.running:
        typer.echo(f"Left, because it runs now: {job_id}", err=True)
    for file_id in done.damaged:
        typer.echo(f"Left, because its digest does not fit: {file_id}", err=True)
    raise typer.Exit(1 if done.running or done.damaged else 0)


@app.command("rotate-key")
def rotate_key(data_dir: DataDir = None) -> None:
    """Make a new data.key and wrap every hospital's key by it. Files stay as they are.

    The old key goes to data.retired first. Where the keys folder is read-only, put both files
    in place by hand and run `rldp data rewrap`.
    """
    from service.sealing.master import MasterKeys

    with _opened(data_dir) as (settings, database):
        try:
            present = MasterKeys.of(settings).replace()
        except PermissionError:
            raise typer.BadParameter("The keys folder is read-only: see --help.") from None
        count = _rewrap(settings, database)
    typer.echo(f"The data key is now {present.id}; {count} hospitals' keys were wrapped anew.")
    typer.echo("Copy data.key and data.retired to every host, then: rldp data rewrap --forget")


@app.command("rewrap")
def rewrap(
    forget: Annotated[
        bool, typer.Option("--forget", help="Empty data.retired afterwards, if nothing needs it.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Wrap every hospital's key by the present data.key. Safe to repeat."""
    from service.sealing.master import MasterKeys

    with _opened(data_dir) as (settings, database):
        count = _rewrap(settings, database)
        if forget:
            try:
                MasterKeys.of(settings).forget_retired()
            except PermissionError:
                typer.echo("The keys folder is read-only: empty data.retired yourself.", err=True)
    typer.echo(f"{count} hospitals' keys were wrapped anew; none needs an earlier key.")


def _rewrap(settings: Settings, database: Database) -> int:
    from service.sealing.keyring import Keyring

    with database.transaction() as session:
        return Keyring.of(settings).rewrap(session)


@app.command("erase-tenant")
def erase_tenant(
    tenant: Annotated[str, typer.Argument(help="The hospital's id, tn_...")],
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask. It cannot be taken back.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Destroy a hospital's keys: its uploads, checkpoints and adapters are gone, in backups too.

    Its jobs must have ended. Ledger, certificates and accounts stay; nothing can be stored for
    the hospital again. A backup of the tables tenant_key and data_key undoes it: see the
    runbook.
    """
    from service.jobs import at_rest
    from service.jobs.errors import StateConflict

    if not yes:
        typer.confirm(f"Destroy every key of {tenant}? This cannot be taken back.", abort=True)
    with _opened(data_dir) as (settings, database):
        try:
            done = at_rest.erase_tenant(database, settings, tenant)
        except LookupError:
            raise typer.BadParameter("There is no such hospital.") from None
        except StateConflict:
            raise typer.BadParameter("Jobs of this hospital are open. Cancel them first.") from None
    typer.echo(
        f"Erased: {done.keys} keys, {done.files} uploads, folders of {done.job_folders} jobs."
    )

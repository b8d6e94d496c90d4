"""The first start of an installation: a hospital, its people, their keys, shown once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import typer

from service.bootstrap import Bootstrapped, bootstrap
from service.database import Database
from service.settings import Settings


def first_start(settings: Settings, *, keys_file: Path | None) -> bool:
    """Fills an empty database at head; whether it was empty."""
    database = Database(settings.resolved_database_url)
    try:
        made = bootstrap(database, settings)
    finally:
        database.dispose()
    if made is None:
        return False
    if keys_file is not None:
        _write_keys(made, keys_file)
        typer.echo(f"First start: keys are in {keys_file}.")
        return True
    typer.echo("First start. These API keys are shown once; keep them:")
    for person in made.principals:
        typer.echo(f"  {person.name:<10} {person.principal_id}  {person.key}")
    typer.echo(f"Signing keys of the stewards: {settings.keys_dir.resolve()}")
    typer.echo("Move each to its steward's own machine; the service needs none of them.")
    return True


def _write_keys(made: Bootstrapped, path: Path) -> None:
    """JSON of keys by person, whole or not at all, readable by its owner only."""
    keys = {person.name.replace("-", "_"): person.key for person in made.principals}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as target:
        json.dump(keys, target, indent=1)
        target.flush()
        os.fsync(target.fileno())
    partial.replace(path)

"""Writes a tenant's ledger as a bundle, straight from the database."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import typer
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.database import Database
from service.ledger.bundle import write_bundle
from service.ledger.errors import LedgerHalted, LedgerNotFound
from service.ledger.publisher import make_publisher
from service.settings import Settings
from service.tenants.models import SYSTEM_TENANT, Tenant


def export_bundle(settings: Settings, *, out: Path, tenant_id: str | None) -> None:
    """Writes the bundle of the tenant's newest log to `out`.

    Raises:
        typer.BadParameter: several tenants and none named, no log yet, or `out` exists.
    """
    database = Database(settings.resolved_database_url)
    publisher = make_publisher(settings, database)
    try:
        publisher.turn()
        with database.reading() as session:
            tenant = tenant_id or _only_tenant(session)
            try:
                archive = write_bundle(session, keys=publisher.keys, tenant_id=tenant)
            except LedgerNotFound:
                raise typer.BadParameter("This tenant has no ledger yet.") from None
            with archive, os.fdopen(_create(out), "wb") as target:
                shutil.copyfileobj(archive, target)
    except LedgerHalted as halted:
        raise typer.BadParameter(str(halted)) from None
    finally:
        database.dispose()
    typer.echo(f"Wrote {out}. Check it with: rldp verify {out}")


def _create(out: Path) -> int:
    try:
        return os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise typer.BadParameter(f"{out} exists; choose another name.") from None


def _only_tenant(session: Session) -> str:
    hospitals = select(Tenant.id).where(Tenant.id != SYSTEM_TENANT)
    tenants = session.scalars(hospitals.order_by(Tenant.id)).all()
    if len(tenants) != 1:
        known = ", ".join(tenants) or "none"
        raise typer.BadParameter(f"Name one with --tenant. Known: {known}.")
    return tenants[0]

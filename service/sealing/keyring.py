"""Keys in the database: made, wrapped, unwrapped, wrapped anew, destroyed.

The deployment's data key wraps one key of each hospital, and that wraps one key for each
file and each job. Destroying a row therefore destroys what it sealed, wherever copies of
the bytes lie; whoever keeps a copy of the row as well and the deployment's key can still
read them, so a backup kept for long leaves both tables of keys out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from service.database import now_us
from service.sealing.errors import KeyDestroyed
from service.sealing.master import KEY_BYTES, MasterKeys, Wrapping
from service.sealing.models import DataKey, TenantKey
from service.settings import Settings


class Keyring:
    """Hands out data keys. Holds nothing but the place of the deployment's key.

    Raises:
        KeyUnavailable: from every method that wraps or unwraps.
    """

    def __init__(self, masters: MasterKeys) -> None:
        self._masters = masters

    @classmethod
    def of(cls, settings: Settings) -> Keyring:
        return cls(MasterKeys.of(settings))

    def keep(self, session: Session, tenant_id: str, owner_id: str, key: bytes) -> None:
        """Stores the key of a new owner in the caller's transaction.

        Raises:
            KeyDestroyed: the hospital's data were erased; nothing is kept for it any more.
        """
        wrapped = self._tenant(session, tenant_id).wrap(key, f"data_key/{owner_id}")
        session.add(
            DataKey(owner_id=owner_id, tenant_id=tenant_id, wrapped=wrapped, created_at=now_us())
        )
        session.flush()

    def of_job(self, session: Session, tenant_id: str, job_id: str) -> bytes:
        """The key of a job's files, made by its first attempt. Needs the job's row locked."""
        found = self.find(session, job_id)
        if found is None:
            found = new_key()
            self.keep(session, tenant_id, job_id, found)
        return found

    def find(self, session: Session, owner_id: str) -> bytes | None:
        """The key of a version or job; None when there is none, or none any more."""
        row = session.get(DataKey, owner_id)
        if row is None:
            return None
        tenant = session.get_one(TenantKey, row.tenant_id)
        return self._opened(tenant).unwrap(row.wrapped, f"data_key/{owner_id}")

    def rewrap(self, session: Session) -> int:
        """Wraps every hospital's key by the present data key; how many were not."""
        present = self._masters.present()
        rows = session.scalars(
            select(TenantKey)
            .where(TenantKey.wrapped.is_not(None), TenantKey.master_id != present.id)
            .order_by(TenantKey.tenant_id)
            .with_for_update()
        ).all()
        for row in rows:
            secret = self._opened(row).secret
            row.wrapped, row.master_id = present.wrap(secret, _place(row.tenant_id)), present.id
        session.flush()
        return len(rows)

    def _tenant(self, session: Session, tenant_id: str) -> Wrapping:
        """The hospital's key, made when it is first needed; an erasure waits for the commit."""
        if session.get(TenantKey, tenant_id) is None:
            self._make_tenant_key(session, tenant_id)
        row = session.scalars(
            select(TenantKey)
            .where(TenantKey.tenant_id == tenant_id)
            .with_for_update(read=True)
            .execution_options(populate_existing=True)
        ).one()
        return self._opened(row)

    def _make_tenant_key(self, session: Session, tenant_id: str) -> None:
        """Two first uploads at once: the second waits for the first and uses its key."""
        present = self._masters.present()
        values = {
            "tenant_id": tenant_id,
            "master_id": present.id,
            "wrapped": present.wrap(new_key(), _place(tenant_id)),
            "created_at": now_us(),
        }
        is_sqlite = session.get_bind().dialect.name == "sqlite"
        insert: Any = (sqlite if is_sqlite else postgresql).insert(TenantKey)
        session.execute(insert.values(values).on_conflict_do_nothing())

    def _opened(self, row: TenantKey) -> Wrapping:
        if row.wrapped is None:
            raise KeyDestroyed
        master = self._masters.by_id(row.master_id)
        return Wrapping(secret=master.unwrap(row.wrapped, _place(row.tenant_id)))


def new_key() -> bytes:
    """256 random bits."""
    return os.urandom(KEY_BYTES)


def destroy(session: Session, owner_id: str) -> None:
    """Destroys the key of a version or job; needs no other key. Safe to repeat."""
    session.execute(delete(DataKey).where(DataKey.owner_id == owner_id))


def destroy_tenant(session: Session, tenant_id: str) -> int:
    """Destroys every key of a hospital for good, also one it has yet to get.

    Returns how many files and jobs lost theirs. Waits for uploads that are being stored.
    """
    session.execute(select(TenantKey).where(TenantKey.tenant_id == tenant_id).with_for_update())
    lost = session.scalar(
        select(func.count()).select_from(DataKey).where(DataKey.tenant_id == tenant_id)
    )
    session.execute(delete(DataKey).where(DataKey.tenant_id == tenant_id))
    row = session.get(TenantKey, tenant_id, populate_existing=True)
    if row is None:
        row = TenantKey(tenant_id=tenant_id, master_id="", created_at=now_us())
        session.add(row)
    row.wrapped, row.destroyed_at = None, row.destroyed_at or now_us()
    session.flush()
    return int(lost or 0)


def in_use(session: Session) -> Iterator[tuple[str, int]]:
    """(id of a deployment's data key, how many hospitals' keys it wraps)."""
    rows = session.execute(
        select(TenantKey.master_id, func.count())
        .where(TenantKey.wrapped.is_not(None))
        .group_by(TenantKey.master_id)
        .order_by(TenantKey.master_id)
    )
    for master_id, count in rows:
        yield master_id, int(count)


def _place(tenant_id: str) -> str:
    return f"tenant_key/{tenant_id}"

"""Erases files whose time is over and bytes that belong to no file (service.md 12.2)."""

from __future__ import annotations

import time
from pathlib import Path

from sqlalchemy import select

from service.database import Database, now_us
from service.datasets.files import erase_row
from service.datasets.models import File
from service.sealing.files import erase

ORPHAN_AGE_SECONDS = 24 * 3600


def sweep(
    database: Database, files_dir: Path, *, orphan_age_seconds: float = ORPHAN_AGE_SECONDS
) -> int:
    """Erases expired files and old orphans; returns how many. Safe to run at any time.

    An orphan is what a crash left between writing and commit: no row names it.
    """
    return _erase_expired(database) + _erase_orphans(database, files_dir, orphan_age_seconds)


def _erase_expired(database: Database) -> int:
    with database.transaction() as session:
        expired = session.scalars(
            select(File)
            .where(File.deleted_at.is_(None), File.expires_at <= now_us())
            .with_for_update(skip_locked=True)
        ).all()
        for file in expired:
            erase_row(session, file)
    return len(expired)


def _erase_orphans(database: Database, files_dir: Path, age_seconds: float) -> int:
    if not files_dir.is_dir():
        return 0
    oldest_kept = time.time() - age_seconds
    old = [
        path
        for path in files_dir.resolve().iterdir()
        if path.is_file() and path.stat().st_mtime <= oldest_kept
    ]
    with database.reading() as session:
        named = set(session.scalars(select(File.blob_path).where(File.blob_path.is_not(None))))
    orphans = [path for path in old if str(path) not in named]
    for path in orphans:
        erase(path)
    return len(orphans)

"""Stores what a finished job leaves, and says whether it may leave the house."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.artifacts.models import Artifact
from service.ids import new_id
from service.ledger.models import Entry, ReleaseRequest
from service.ledger.standing import standing_of
from service.sealing.files import FileKey, StoredFile


@dataclass(frozen=True, kw_only=True)
class ArtifactFile:
    """One finished file on disk. `sha256` is of its bytes, in hex."""

    name: str
    path: str
    sha256: str
    bytes: int


ADAPTER_PREFIX = "adapter_"  # files of the adapter; the audit's are about synthetic text


def label_of(name: str) -> str:
    """What a file is in the words of its seal."""
    return f"artifact/{name}"


def stored_file(file: Artifact, secret: bytes | None) -> StoredFile:
    """The file under its job's key; without one it was written by a release that sealed none.

    It may be in clear: whoever reads it compares its digest with the row's.
    """
    key = secret and FileKey(owner_id=file.job_id, label=label_of(file.name), secret=secret)
    return StoredFile(path=Path(file.path), key=key or None, may_be_clear=True)


def add(
    session: Session, *, tenant_id: str, job_id: str, files: Iterable[ArtifactFile], now: int
) -> None:
    """Notes the files of a job in the caller's transaction."""
    session.add_all(
        Artifact(
            id=new_id("art_"),
            tenant_id=tenant_id,
            job_id=job_id,
            name=file.name,
            path=file.path,
            sha256=file.sha256,
            size_bytes=file.bytes,
            created_at=now,
        )
        for file in files
    )
    session.flush()


def of_job(session: Session, job_id: str) -> Sequence[Artifact]:
    """The files of a job by name. The caller has checked who may see the job."""
    return session.scalars(
        select(Artifact).where(Artifact.job_id == job_id).order_by(Artifact.name)
    ).all()


def release_state(session: Session, job_id: str) -> str:
    """`published` while one release of the job is; else the newest one's state, or "none"."""
    return release_states(session, [job_id])[job_id]


def release_states(session: Session, job_ids: Sequence[str]) -> dict[str, str]:
    """The same of several jobs, in one query."""
    rows = session.execute(
        select(ReleaseRequest.job_id, ReleaseRequest.state)
        .where(ReleaseRequest.job_id.in_(job_ids))
        .order_by(ReleaseRequest.created_at, ReleaseRequest.id)
    )
    found = dict.fromkeys(job_ids, "none")
    for job_id, state in rows:
        if found[job_id] != "published":
            found[job_id] = state
    return found


def is_release_evident(session: Session, job_id: str) -> bool:
    """Whether `release.published` stands under a checkpoint with the quorum's signatures.

    Until then the service could still deny the release (P9, ledger.md 10.4).
    """
    published = session.execute(
        select(Entry.log_id, Entry.idx)
        .where(Entry.job_id == job_id, Entry.type == "release.published")
        .order_by(Entry.idx.desc())
        .limit(1)
    ).first()
    return published is not None and standing_of(session, published.log_id).is_evident(
        published.idx
    )

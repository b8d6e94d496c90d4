"""Stores what a finished job leaves, and says whether it may leave the house."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.artifacts.models import Artifact
from service.ids import new_id
from service.ledger.models import Entry, ReleaseRequest
from service.ledger.standing import standing_of


@dataclass(frozen=True, kw_only=True)
class ArtifactFile:
    """One finished file on disk. `sha256` is of its bytes, in hex."""

    name: str
    path: str
    sha256: str
    bytes: int


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
    states = session.scalars(
        select(ReleaseRequest.state)
        .where(ReleaseRequest.job_id == job_id)
        .order_by(ReleaseRequest.created_at.desc(), ReleaseRequest.id.desc())
    ).all()
    if "published" in states:
        return "published"
    return states[0] if states else "none"


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

"""Which adapter a request may talk to: its own hospital's, and only once it was released.

An adapter is a released output of the charged mechanism, so what is asked of it costs no budget.
Before two stewards have published it, it must not speak: its answers would leave unsigned.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from service.artifacts import endpoints as artifacts
from service.auth.subject import Subject
from service.errors import NotFound, ServiceError
from service.jobs.errors import JobNotFound
from service.jobs.lifecycle import WITH_ADAPTER
from service.jobs.models import Job
from service.jobs.repository import visible_job
from service.jobs.views import fine_tuned_model
from service.models_catalog import find_model
from service.sealing.keyring import Keyring
from service.settings import Settings

FILES = ("adapter_model.safetensors", "adapter_config.json")
ID_PARTS = 5  # ft:base:hospital:suffix:job


@dataclass(frozen=True, kw_only=True)
class ReleasedModel:
    """A base of the catalogue and the checked bytes of an adapter on it."""

    id: str
    job_id: str
    base_dir: Path
    base_digest: str
    files: dict[str, bytes]


def is_offered(settings: Settings) -> bool:
    """Whether this process may talk at all: an operator's choice."""
    return settings.chat


def released_model(
    session: Session, settings: Settings, subject: Subject, model_id: str
) -> ReleasedModel:
    """The adapter of that name, read and compared with its entry in the ledger.

    Raises:
        NotFound: no adapter of that name for this caller.
        ServiceError: 403 release_pending; 503 not_ready until the release is witnessed.
        InvariantViolation: its bytes are not those that the ledger settled.
    """
    job = _job_of(session, subject, model_id)
    files = artifacts.released_bytes(session, Keyring.of(settings), job.id, FILES)
    base = find_model(settings, job.model)
    if base is None:
        raise ServiceError(
            503, "not_ready", "The adapter's base model is no longer in this installation's list."
        )
    return ReleasedModel(
        id=model_id,
        job_id=job.id,
        base_dir=base.directory,
        base_digest=json.loads(job.plan)["base_model_digest"],
        files=files,
    )


def _job_of(session: Session, subject: Subject, model_id: str) -> Job:
    parts = model_id.split(":")
    if len(parts) < ID_PARTS or parts[0] != "ft":
        raise NotFound
    try:
        job = visible_job(session, subject, parts[-1])
    except JobNotFound:
        raise NotFound from None
    if fine_tuned_model(job) != model_id or job.state not in WITH_ADAPTER:
        raise NotFound
    return job

"""Answers about a job's files. The caller has checked who may see the job."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from fastapi import Response
from sqlalchemy.orm import Session

from dp_core.errors import InvariantViolation
from service.artifacts import service
from service.artifacts.models import Artifact
from service.certificates.models import Certificate
from service.errors import NotFound, ServiceError
from service.sealing.answers import file_answer
from service.sealing.files import StoredFile
from service.sealing.keyring import Keyring

CERTIFICATE = "certificate.json"
CHUNK_BYTES = 1024 * 1024
CHANGED = "A released file no longer has the digest of its settle entry."


def artifact_list(session: Session, job_id: str) -> dict[str, Any]:
    """Files of the job with digests, and the state of their release."""
    certificate = session.get(Certificate, job_id)
    files = [
        {"object": "artifact", "name": file.name, "sha256": file.sha256, "bytes": file.size_bytes}
        for file in service.of_job(session, job_id)
    ]
    if certificate is not None:
        files.append(
            {
                "object": "artifact",
                "name": CERTIFICATE,
                "sha256": certificate.digest,
                "bytes": len(certificate.body.encode()),
            }
        )
    return {
        "object": "list",
        "data": files,
        "has_more": False,
        "release": {"state": service.release_state(session, job_id)},
    }


def artifact_file(session: Session, keys: Keyring, job_id: str, name: str) -> Response:
    """The bytes of one file, if a release of the job is published under a checkpoint.

    Raises:
        NotFound: the job has no such file.
        ServiceError: 403 release_pending; 503 not_ready until the checkpoint is witnessed.
        InvariantViolation: the file's bytes are not those the ledger settled.
    """
    certificate = session.get(Certificate, job_id) if name == CERTIFICATE else None
    file = next((row for row in service.of_job(session, job_id) if row.name == name), None)
    if certificate is None and file is None:
        raise NotFound()
    require_released(session, job_id)
    if certificate is not None:
        headers = {"ETag": f'"{certificate.digest}"'}
        return Response(certificate.body, media_type="application/json", headers=headers)
    assert file is not None
    return _checked(file, keys.find(session, job_id))


def released_bytes(
    session: Session, keys: Keyring, job_id: str, names: Sequence[str]
) -> dict[str, bytes]:
    """The named files of a published release, compared with their digests.

    Raises: as `artifact_file`.
    """
    files = {file.name: file for file in service.of_job(session, job_id)}
    if not set(names) <= set(files):
        raise NotFound()
    require_released(session, job_id)
    secret, found = keys.find(session, job_id), dict[str, bytes]()
    for name in names:
        with service.stored_file(files[name], secret).open() as stream:
            found[name] = stream.read()
    for name, content in found.items():
        if hashlib.sha256(content).hexdigest() != files[name].sha256:
            raise InvariantViolation(CHANGED)
    return found


def require_released(session: Session, job_id: str) -> None:
    """Passes while a release of the job is published, under a checkpoint of enough witnesses.

    Raises:
        ServiceError: 403 release_pending; 503 not_ready until the checkpoint is witnessed.
    """
    if service.release_state(session, job_id) != "published":
        raise ServiceError(
            403,
            "release_pending",
            "Two stewards must publish a release of this job before its files can be taken.",
        )
    if not service.is_release_evident(session, job_id):
        raise ServiceError(
            503,
            "not_ready",
            "The release is signed by both stewards; its checkpoint is not, or not by enough "
            "witnesses. This takes seconds: try again. If it lasts, see GET /v1/ledger/anomalies.",
        )


def _checked(file: Artifact, secret: bytes | None) -> Response:
    stored = service.stored_file(file, secret)
    if _digest(stored) != file.sha256:
        raise InvariantViolation(CHANGED)
    return file_answer(
        stored,
        media_type="application/octet-stream",
        filename=file.name,
        headers={"ETag": f'"{file.sha256}"'},
    )


def _digest(stored: StoredFile) -> str:
    digest = hashlib.sha256()
    with stored.open() as source:
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()

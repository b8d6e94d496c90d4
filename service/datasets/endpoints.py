"""Routes of files, their row reports, datasets and versions."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from service import openapi
from service.auth.subject import Subject, require_role
from service.datasets import files, repository, service, storage
from service.datasets.form import receive_form
from service.datasets.models import Dataset, DatasetVersion, File
from service.datasets.schemas import (
    NOT_FOR_RELEASE,
    DatasetCreate,
    FileQuery,
    ValidationQuery,
    VersionCreate,
    dataset_to_dict,
    fault_to_dict,
    file_to_dict,
    version_to_dict,
)
from service.datasets.validation import FAULTS_KEPT_MAX
from service.dependencies import (
    DatabaseDep,
    KeyringDep,
    ReadDep,
    SessionDep,
    SettingsDep,
    StewardDep,
    SubjectDep,
)
from service.errors import CursorInvalid, NotFound, TrainingDataSealed
from service.idempotency.once import REPLAYED, KeyHeader, OnceDep
from service.ids import new_id
from service.listing import ListQuery, envelope, page
from service.logged_reads import LoggedRoute
from service.populations.models import Population
from service.sealing.answers import file_answer


class PersonalRoute(LoggedRoute):
    """Enters who read what a person wrote, or what was found wrong in it."""

    logged = frozenset({"/v1/files/{file_id}/content", "/v1/files/{file_id}/validation"})


router = APIRouter(prefix="/v1", tags=["files"], route_class=PersonalRoute)

DataOwner = Annotated[Subject, Depends(require_role("submitter", "steward"))]

_UPLOAD_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": ["fine-tune"]},
                        "dataset": {"type": "string"},
                        "privacy[unit_field]": {"type": "string"},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer"},
                    },
                }
            }
        },
    }
}


@router.post("/files", openapi_extra=_UPLOAD_SCHEMA)
async def upload_file(
    request: Request,
    subject: DataOwner,
    database: DatabaseDep,
    settings: SettingsDep,
    response: Response,
    idempotency_key: KeyHeader = None,
) -> dict[str, Any]:
    """Streams the body to disk; asynchronous, unlike every other route, for this reason."""
    file_id = new_id("file-")
    spool = await run_in_threadpool(storage.new_spool, settings.files_dir, file_id)
    try:
        form = await receive_form(request, spool, bytes_max=settings.upload_bytes_max)
        stored = await run_in_threadpool(
            files.store_upload,
            database,
            settings,
            subject,
            file_id=file_id,
            spooled=spool,
            form=form,
            key=idempotency_key,
        )
    finally:
        await run_in_threadpool(spool.discard)
    if stored.is_replayed:
        response.headers[REPLAYED] = "true"
    return stored.answer


@router.get("/files")
def list_files(
    subject: DataOwner, session: ReadDep, query: Annotated[FileQuery, Query()]
) -> dict[str, Any]:
    if query.purpose not in (None, "fine-tune"):
        return envelope([], has_more=False)
    return page(
        session,
        File,
        repository.visible_files(subject),
        after=query.after,
        limit=query.limit,
        order=query.order,
        show=file_to_dict,
    )


@router.get("/files/{file_id}")
def retrieve_file(file_id: str, subject: DataOwner, session: ReadDep) -> dict[str, Any]:
    return file_to_dict(repository.one_file(session, subject, file_id))


@router.delete("/files/{file_id}")
def delete_file(file_id: str, subject: DataOwner, session: SessionDep) -> dict[str, Any]:
    files.erase_file(session, subject, file_id)
    return {"id": file_id, "object": "file", "deleted": True}


@router.get(
    "/files/{file_id}/content",
    response_class=Response,
    responses=openapi.files("application/jsonl"),
)
def file_content(file_id: str, subject: SubjectDep, session: ReadDep, keys: KeyringDep) -> Response:
    """The rows as they are kept, for a steward; no other role reads training data back."""
    if subject.role != "steward":
        raise TrainingDataSealed
    rows = files.content(session, keys, subject, file_id)
    return file_answer(rows, media_type="application/jsonl", filename=f"{file_id}.jsonl")


@router.get("/files/{file_id}/validation")
def file_validation(
    file_id: str,
    subject: DataOwner,
    session: ReadDep,
    query: Annotated[ValidationQuery, Query()],
) -> dict[str, Any]:
    """Row faults in file order; the exact counts in it are for the data owner alone."""
    file = repository.one_file(session, subject, file_id)
    after = query.after or "0"
    if not after.isdecimal() or len(after) > 9:
        raise CursorInvalid
    rows = repository.faults_of_file(session, file.id, after_seq=int(after), limit=query.limit + 1)
    return {
        **envelope(
            [fault_to_dict(row) for row in rows[: query.limit]], has_more=len(rows) > query.limit
        ),
        "file": file.id,
        "status": file.status,
        "errors_total": file.errors_total,
        "complete": file.errors_total <= FAULTS_KEPT_MAX,
        "notice": NOT_FOR_RELEASE,
    }


@router.post("/datasets", status_code=201, tags=["datasets"])
def create_dataset(
    body: DatasetCreate, subject: StewardDep, session: SessionDep, response: Response, once: OnceDep
) -> dict[str, Any]:

    def make() -> dict[str, Any]:
        dataset = service.register_dataset(session, subject, body)
        response.headers["Location"] = f"/v1/datasets/{dataset.id}"
        return dataset_to_dict(dataset)

    return once.answer(body, make)


@router.get("/datasets", tags=["datasets"])
def list_datasets(
    subject: SubjectDep, session: ReadDep, query: Annotated[ListQuery, Query()]
) -> dict[str, Any]:
    return page(
        session,
        Dataset,
        repository.visible_datasets(subject),
        after=query.after,
        limit=query.limit,
        show=dataset_to_dict,
    )


@router.get("/datasets/{dataset_id}", tags=["datasets"])
def retrieve_dataset(dataset_id: str, subject: SubjectDep, session: ReadDep) -> dict[str, Any]:
    return dataset_to_dict(repository.one_dataset(session, subject, dataset_id))


@router.post("/datasets/{dataset_id}/versions", status_code=201, tags=["datasets"])
def create_version(
    dataset_id: str,
    body: VersionCreate,
    subject: DataOwner,
    session: SessionDep,
    response: Response,
    once: OnceDep,
) -> dict[str, Any]:

    def make() -> dict[str, Any]:
        version = service.make_version(session, subject, dataset_id, body)
        response.headers["Location"] = f"/v1/datasets/{dataset_id}/versions/{version.id}"
        dataset = repository.one_dataset(session, subject, dataset_id)
        population = session.get_one(Population, dataset.population_id)
        return version_to_dict(version, population.patients_public)

    return once.answer(body, make)


@router.get("/datasets/{dataset_id}/versions", tags=["datasets"])
def list_versions(
    dataset_id: str, subject: SubjectDep, session: ReadDep, query: Annotated[ListQuery, Query()]
) -> dict[str, Any]:
    dataset = repository.one_dataset(session, subject, dataset_id)
    population = session.get_one(Population, dataset.population_id)
    return page(
        session,
        DatasetVersion,
        repository.visible_versions(subject).where(DatasetVersion.dataset_id == dataset.id),
        after=query.after,
        limit=query.limit,
        show=lambda row: version_to_dict(row, population.patients_public),
    )


@router.get("/datasets/{dataset_id}/versions/{version_id}", tags=["datasets"])
def retrieve_version(
    dataset_id: str, version_id: str, subject: SubjectDep, session: ReadDep
) -> dict[str, Any]:
    version = session.scalar(
        repository.visible_versions(subject).where(
            DatasetVersion.dataset_id == dataset_id, DatasetVersion.id == version_id
        )
    )
    if version is None:
        raise NotFound
    dataset = repository.one_dataset(session, subject, dataset_id)
    population = session.get_one(Population, dataset.population_id)
    return version_to_dict(version, population.patients_public)

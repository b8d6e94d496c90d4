"""Routes of uploads: the form, the list of files, and the row report of one.

A row report names line, place and kind of each fault, never what stood there. Reading one
is entered in the access log, as the API's report is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from service.auth.subject import Subject
from service.dashboard.advice import Trouble, trouble_of
from service.dashboard.endpoints import SignerDep
from service.dashboard.ledger_endpoints import answer_for
from service.dashboard.reader import ReaderDep
from service.dashboard.rendering import page
from service.dashboard.sessions import SessionSigner, SignedIn, is_own_form, signed_in
from service.dashboard.submit_page import DatasetChoice, dataset_choices
from service.database import Database
from service.datasets import files, repository, storage
from service.datasets.form import UploadForm, receive_form
from service.datasets.models import File, FileError
from service.datasets.validation import FAULTS_KEPT_MAX
from service.dependencies import DatabaseDep, ReadDep, SettingsDep
from service.errors import BodyTooLarge
from service.ids import new_id
from service.logged_reads import LoggedRoute

DATA_OWNERS = frozenset({"submitter", "steward"})
FILES_SHOWN = 50
FAULTS_SHOWN = 100
TOKEN = "form_token"
OLD_FORM = Trouble(
    message="This form was too old, so nothing was kept.", next_step="Send the file again.",
    status=400,
)  # fmt: skip


router = APIRouter(include_in_schema=False, route_class=LoggedRoute)


@dataclass(frozen=True, kw_only=True)
class FilesPage:
    files: Sequence[File]
    choices: tuple[DatasetChoice, ...]
    bytes_max: int
    trouble: Trouble | None


@dataclass(frozen=True, kw_only=True)
class FilePage:
    """`following` is the number to go on after, None on the last page."""

    file: File
    population: str | None
    faults: Sequence[FileError]
    following: int | None
    is_complete: bool


@router.get("/files")
def show_files(person: ReaderDep, session: ReadDep, settings: SettingsDep) -> Response:
    """The upload form, and the files the reader may see."""

    def build(who: SignedIn) -> Response:
        shown = _files_page(session, who.subject, settings.upload_bytes_max)
        return page("files.html", person=who, shown=shown)

    return answer_for(person, build, DATA_OWNERS)


@router.post("/files")
async def upload(
    request: Request, database: DatabaseDep, settings: SettingsDep, signer: SignerDep
) -> Response:
    """Streams a file from the form to disk, as the API does; answers with its row report."""
    person = await run_in_threadpool(_person, signer, request, database)
    if person is None or person.subject.role not in DATA_OWNERS:
        return answer_for(person, lambda _who: Response(status_code=404), DATA_OWNERS)
    file_id = new_id("file-")
    spool = await run_in_threadpool(storage.new_spool, settings.files_dir, file_id)
    try:
        form = await receive_form(
            request,
            spool,
            bytes_max=settings.upload_bytes_max,
            extra_fields=frozenset({TOKEN}),
        )
        if is_own_form(signer, request, form.fields.get(TOKEN, "")):
            fields = {n: v for n, v in form.fields.items() if n != TOKEN and v}
            await run_in_threadpool(
                files.store_upload,
                database,
                settings,
                person.subject,
                file_id=file_id,
                spooled=spool,
                form=UploadForm(filename=form.filename, fields=fields),
            )
            return RedirectResponse(f"/files/{file_id}", status_code=303)
        trouble: Trouble | None = OLD_FORM
    except Exception as error:
        trouble = trouble_of(error)
        if trouble is None:
            raise
    finally:
        await run_in_threadpool(spool.discard)
    assert trouble is not None
    return await run_in_threadpool(_refused, database, person, settings.upload_bytes_max, trouble)


@router.get("/files/{file_id}")
def show_file(
    file_id: str,
    person: ReaderDep,
    session: ReadDep,
    after: Annotated[int, Query(ge=0, le=10**9)] = 0,
) -> Response:
    """What became of an upload: ready for a job, or its row report."""
    return answer_for(
        person,
        lambda who: page(
            "file.html", person=who, shown=_file_page(session, who.subject, file_id, after)
        ),
        DATA_OWNERS,
    )


def too_large_page(bytes_max: int) -> Response:
    """For a body that was refused before anybody looked who sent it; hence without a name."""
    trouble = trouble_of(BodyTooLarge(bytes_max))
    assert trouble is not None
    megabytes = bytes_max // (1024 * 1024)
    return page(
        "too_large.html",
        status=trouble.status,
        person=None,
        limit=f"{megabytes} MB" if megabytes else f"{bytes_max} bytes",
        next_step=trouble.next_step,
    )


def _person(signer: SessionSigner, request: Request, database: Database) -> SignedIn | None:
    """Looked up apart from the long body, so that no transaction stays open while it arrives."""
    with database.reading() as session:
        return signed_in(signer, request, session)


def _refused(database: Database, person: SignedIn, bytes_max: int, trouble: Trouble) -> Response:
    with database.reading() as session:
        shown = _files_page(session, person.subject, bytes_max, trouble)
        return page("files.html", status=trouble.status, person=person, shown=shown)


def _files_page(
    session: Session, subject: Subject, bytes_max: int, trouble: Trouble | None = None
) -> FilesPage:
    newest = repository.visible_files(subject).order_by(File.created_at.desc(), File.id.desc())
    return FilesPage(
        files=session.scalars(newest.limit(FILES_SHOWN)).all(),
        choices=dataset_choices(session, subject),
        bytes_max=bytes_max,
        trouble=trouble,
    )


def _file_page(session: Session, subject: Subject, file_id: str, after: int) -> FilePage:
    file = repository.one_file(session, subject, file_id)
    faults = repository.faults_of_file(session, file.id, after_seq=after, limit=FAULTS_SHOWN + 1)
    chosen = next(
        (c for c in dataset_choices(session, subject) if c.dataset.id == file.dataset_id), None
    )
    return FilePage(
        file=file,
        population=chosen.population.code if chosen else None,
        faults=faults[:FAULTS_SHOWN],
        following=faults[FAULTS_SHOWN - 1].seq if len(faults) > FAULTS_SHOWN else None,
        is_complete=file.errors_total <= FAULTS_KEPT_MAX,
    )

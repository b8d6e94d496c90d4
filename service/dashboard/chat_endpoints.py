"""The playground of a job's page: an answer as a page, or word by word where scripts run.

Neither prompt nor answer is kept: they stand in the page that was sent and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import StreamingResponse

from service.chat.endpoints import FAILED, open_model, pieces, speaker_of
from service.chat.speaker import ChatFailed, Talk
from service.dashboard.chat_box import ADVICE, TALKERS, ChatForm, Said, can_chat, request_of
from service.dashboard.endpoints import SignerDep
from service.dashboard.ledger_endpoints import answer_for
from service.dashboard.reader import ReaderDep
from service.dashboard.rendering import page
from service.dashboard.sessions import SignedIn, is_own_form
from service.dependencies import DatabaseDep, ReadDep, SettingsDep
from service.errors import NotFound, ServiceError
from service.jobs.models import Job
from service.jobs.repository import visible_job
from service.logged_reads import LoggedRoute

router = APIRouter(include_in_schema=False, route_class=LoggedRoute)

ROUTE = "/jobs/{job_id}/chat"
OLD_FORM = "This form was too old. Send it again."


@router.get("/jobs/{job_id}/chat")
def show_chat(job_id: str, person: ReaderDep, session: ReadDep, settings: SettingsDep) -> Response:
    def build(who: SignedIn) -> Response:
        job = visible_job(session, who.subject, job_id)
        if not can_chat(settings, who.subject, "published"):
            raise NotFound
        return _page(who, job, Said())

    return answer_for(person, build, TALKERS)


@router.post("/jobs/{job_id}/chat")
def chat(
    job_id: str,
    request: Request,
    person: ReaderDep,
    signer: SignerDep,
    database: DatabaseDep,
    settings: SettingsDep,
    form: Annotated[ChatForm, Form()],
) -> Response:
    """One answer; a stream of plain text for the script, which asks for it by `Accept`."""

    def build(who: SignedIn) -> Response:
        with database.reading() as session:
            job = visible_job(session, who.subject, job_id)
        asked, streams = request_of(job, form), "text/plain" in request.headers.get("accept", "")
        if not is_own_form(signer, request, form.form_token):
            return _page(who, job, Said(problem=OLD_FORM), status=400)
        if asked is None:
            return _page(who, job, Said(prompt=form.prompt, problem=ADVICE), status=422)
        try:
            model = open_model(database, settings, who.subject, asked.model, ROUTE)
            talk = speaker_of(request.app).ask(model, asked)
        except NotFound:
            raise
        except ServiceError as refused:
            said = Said(prompt=form.prompt, problem=refused.message)
            return _page(who, job, said, status=refused.status)
        if streams:
            return StreamingResponse(_words(talk), media_type="text/plain")
        return _page(who, job, _whole(talk, form.prompt))

    return answer_for(person, build, TALKERS)


def _words(talk: Talk) -> Iterator[str]:
    try:
        for step in pieces(talk):
            yield step.get("text", "")
    except ChatFailed:
        yield f"\n[{FAILED}]"


def _whole(talk: Talk, prompt: str) -> Said:
    try:
        return Said(prompt=prompt, answer="".join(s.get("text", "") for s in pieces(talk)))
    except ChatFailed:
        return Said(prompt=prompt, problem=FAILED)


def _page(who: SignedIn, job: Job, said: Said, *, status: int = 200) -> Response:
    return page("chat.html", status=status, person=who, job=job, said=said)

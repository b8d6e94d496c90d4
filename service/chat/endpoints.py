"""POST /v1/chat/completions: OpenAI's shape, streamed or whole, for released adapters only."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from service import openapi
from service.auth.subject import Subject, require_role
from service.chat.released import ReleasedModel, is_offered, released_model
from service.chat.schemas import ChatRequest
from service.chat.speaker import ChatFailed, Speaker, Talk, has_runtime
from service.database import Database
from service.dependencies import DatabaseDep, SettingsDep
from service.errors import ServiceError, UnsupportedOption
from service.exact_json import ExactRoute
from service.ledger import access
from service.settings import Settings

router = APIRouter(prefix="/v1/chat", tags=["models"], route_class=ExactRoute)

ROUTE = "/v1/chat/completions"
# As for the files of a release: whoever may take the adapter away may talk to it here.
Talker = Annotated[Subject, Depends(require_role("submitter", "steward"))]
FAILED = "The model gave no answer. Try again; if it lasts, ask your administrator."


def speaker_of(app: FastAPI) -> Speaker:
    """The application's speaker, made at first use; its child starts with the first question."""
    state = app.state
    if getattr(state, "speaker", None) is None:
        state.speaker = Speaker()
    speaker: Speaker = state.speaker
    return speaker


@router.post(
    "/completions",
    response_class=Response,
    responses=openapi.files("application/json", "text/event-stream"),
)
def create_chat_completion(
    request: Request,
    body: ChatRequest,
    subject: Talker,
    database: DatabaseDep,
    settings: SettingsDep,
) -> Response:
    """A short answer of a released adapter. Nothing of it is kept, and it costs no budget."""
    model = open_model(database, settings, subject, body.model, ROUTE)
    talk = speaker_of(request.app).ask(model, body)
    made = {
        "id": f"chatcmpl-{talk.number}-{int(time.time())}",
        "created": int(time.time()),
        "model": body.model,
    }
    if body.stream:
        return StreamingResponse(_streamed(talk, made), media_type="text/event-stream")
    return JSONResponse(_whole(talk, made))


def open_model(
    database: Database, settings: Settings, subject: Subject, model_id: str, route: str
) -> ReleasedModel:
    """The model of that name, its use entered in the access log before the first word.

    Raises:
        UnsupportedOption: there is no playground here.
        As `released_model`.
    """
    if not is_offered(settings):
        raise UnsupportedOption("model", "The playground is switched off here (RLDP_CHAT).")
    if not has_runtime():
        raise UnsupportedOption(
            "model", "This installation's API runs no models. Take the adapter and run it yourself."
        )
    with database.reading() as session:
        model = released_model(session, settings, subject, model_id)
    with database.transaction() as session:
        access.record(
            session,
            tenant_id=subject.tenant_id,
            actor=subject.principal_id,
            role=subject.role,
            route=route,
            status=200,
            shown=model.job_id,
        )
    return model


def pieces(talk: Talk) -> Iterator[dict[str, Any]]:
    """The answer's steps; whoever stops reading calls it off."""
    with closing(talk.answers()) as steps:  # type: ignore[type-var]
        yield from steps


def _whole(talk: Talk, made: dict[str, Any]) -> dict[str, Any]:
    text, last = "", {}
    try:
        for step in pieces(talk):
            text, last = text + step.get("text", ""), step
    except ChatFailed:
        raise ServiceError(503, "not_ready", FAILED) from None
    asked, said = last["prompt_tokens"], last["completion_tokens"]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None,
        "finish_reason": last["done"],
    }
    usage = {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}
    return {**made, "object": "chat.completion", "choices": [choice], "usage": usage}


def _streamed(talk: Talk, made: dict[str, Any]) -> Iterator[str]:
    """OpenAI's chunks. A failure after the first byte is told as the client expects it."""

    def chunk(delta: dict[str, str], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        document = {**made, "object": "chat.completion.chunk", "choices": [choice]}
        return f"data: {json.dumps(document)}\n\n"

    yield chunk({"role": "assistant", "content": ""})
    try:
        for step in pieces(talk):
            yield chunk({"content": step["text"]}) if "text" in step else chunk({}, step["done"])
    except ChatFailed:
        error = {"message": FAILED, "type": "server_error", "param": None, "code": "not_ready"}
        yield f"data: {json.dumps({'error': error})}\n\n"
    yield "data: [DONE]\n\n"

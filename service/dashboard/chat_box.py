"""Whether a page offers a word with a job's adapter, and the form that asks for it."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Form
from pydantic import BaseModel, ConfigDict, ValidationError

from service.auth.subject import Subject
from service.chat.released import is_offered
from service.chat.schemas import CHARACTERS_MAX, TOKENS_MAX, ChatMessage, ChatRequest, Template
from service.chat.speaker import has_runtime
from service.jobs.models import Job
from service.jobs.views import fine_tuned_model
from service.settings import Settings

TALKERS = frozenset({"submitter", "steward"})
TOKENS_SHOWN = 100
ADVICE = (
    f"Write a prompt of at most {CHARACTERS_MAX} characters, and ask for 1 to {TOKENS_MAX} tokens."
)


@dataclass(frozen=True, kw_only=True)
class Said:
    """What stands beside the form: an answer, or why there is none."""

    prompt: str = ""
    answer: str = ""
    problem: str = ""


class ChatForm(BaseModel):
    """What the page sends. Its bounds are those of the API's request."""

    model_config = ConfigDict(extra="ignore")

    prompt: str = Form("")
    template: str = Form("plain")
    tokens: str = Form(str(TOKENS_SHOWN))
    form_token: str = Form("")


def can_chat(settings: Settings, subject: Subject, release: str) -> bool:
    """For those who may take the adapter away, once it is released, where models can run."""
    if subject.role not in TALKERS or release != "published":
        return False
    return is_offered(settings) and has_runtime()


def request_of(job: Job, form: ChatForm) -> ChatRequest | None:
    """The API's request; None when a value is out of its bounds."""
    template: Template = "chat" if form.template == "chat" else "plain"
    try:
        return ChatRequest(
            model=fine_tuned_model(job),
            messages=[ChatMessage(role="user", content=form.prompt)],
            max_tokens=int(form.tokens),
            template=template,
        )
    except (ValidationError, ValueError):
        return None

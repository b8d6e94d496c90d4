"""The form of a new job: text fields in, the API's own request out, faults in our words."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from service.jobs.schemas import JobRequest

Text = Annotated[str, StringConstraints(max_length=200, strip_whitespace=True)]

# What each field takes; said beside it when it holds something else.
TAKES = {
    "file": "Choose a file.",
    "model": "Choose a model.",
    "epsilon": "A number from 0.1, such as 3.",
    "steps": "A whole number from 1 to 1,000,000, or nothing.",
    "batch": "A whole number from 1 to 1,000,000, or nothing.",
    "interval": "A whole number from 1 to 500.",
    "rank": "A whole number from 1 to 256.",
    "mode": "One of the two in the list.",
    "controller": "One of those in the list.",
    "suffix": "Up to 64 letters, digits, - and _.",
}
# The API's names of the same fields, longest first where one begins another.
PARAMS = {
    "training_file": "file",
    "model": "model",
    "privacy.target_epsilon": "epsilon",
    "privacy.steps_max": "steps",
    "privacy.mode": "mode",
    "method.supervised.hyperparameters.batch_size": "batch",
    "controller.interval_steps": "interval",
    "controller.type": "controller",
    "adapter.r": "rank",
    "suffix": "suffix",
}


class SubmitForm(BaseModel):
    """As typed. Empty `steps` and `batch` leave the choice to the planner."""

    model_config = ConfigDict(frozen=True)

    file: Text = ""
    model: Text = ""
    epsilon: Text = "3"
    steps: Text = ""
    batch: Text = ""
    mode: Text = "fixed_sigma"
    controller: Text = "reference"
    interval: Text = "25"
    rank: Text = "16"
    suffix: Text = ""
    ask: Text = ""  # an estimate is wanted

    def fields(self) -> dict[str, str]:
        """What a job is made of, for hidden fields and addresses."""
        return {name: getattr(self, name) for name in TAKES}


class SubmittedForm(SubmitForm):
    """The form that confirms an estimate; its key makes a double click one job."""

    form_token: Annotated[str, StringConstraints(max_length=128)] = ""
    idempotency_key: Annotated[str, StringConstraints(max_length=64)] = ""


class FormInvalid(Exception):
    """Some fields cannot be read. `faults`: what each of them takes."""

    def __init__(self, fields: set[str]) -> None:
        self.faults = {field: TAKES[field] for field in TAKES if field in fields}
        super().__init__("Some fields need another look.")


def new_key() -> str:
    return secrets.token_urlsafe(24)


def job_request(form: SubmitForm) -> JobRequest:
    """The request that the API would take.

    Raises:
        FormInvalid: fields that hold something else than they take.
    """
    numbers = {name: _whole(getattr(form, name)) for name in ("steps", "batch", "interval", "rank")}
    wrong = {name for name, value in numbers.items() if value is None and getattr(form, name)}
    try:
        request = JobRequest.model_validate(_body(form, numbers))
    except ValidationError as error:
        wrong |= {_field_of(fault["loc"]) for fault in error.errors()}
        raise FormInvalid(wrong) from None
    if wrong:
        raise FormInvalid(wrong)
    return request


def _body(form: SubmitForm, numbers: dict[str, int | None]) -> dict[str, Any]:
    privacy: dict[str, Any] = {"target_epsilon": form.epsilon, "mode": form.mode}
    hyperparameters: dict[str, Any] = {}
    controller: dict[str, Any] = {"type": form.controller}
    adapter: dict[str, Any] = {}
    for place, name, field in (
        (privacy, "steps_max", "steps"),
        (hyperparameters, "batch_size", "batch"),
        (controller, "interval_steps", "interval"),
        (adapter, "r", "rank"),
    ):
        if numbers[field] is not None:
            place[name] = numbers[field]
    return {
        "model": form.model,
        "training_file": form.file,
        "suffix": form.suffix or None,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "privacy": privacy,
        "controller": controller,
        "adapter": adapter,
    }


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def _field_of(place: tuple[int | str, ...]) -> str:
    return field_of_param(".".join(map(str, place))) or "file"


def field_of_param(param: str | None) -> str | None:
    """The form's field of an API parameter; None where the form has none."""
    for name, field in PARAMS.items():
        if param == name or (param or "").startswith(f"{name}."):
            return field
    return None

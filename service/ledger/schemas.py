"""Input models and callers of the ledger's routes. Numbers are read as decimal text."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from typing import Annotated, Literal

from fastapi import Depends
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from service.auth.subject import Subject, require_role
from service.exact_json import DecimalText as ExactDecimalText
from service.ledger.burn_down import DAYS_MAX
from service.ledger.disclosures import LegalGround
from service.listing import ListQuery

Steward = Annotated[Subject, Depends(require_role("steward"))]
LedgerReader = Annotated[Subject, Depends(require_role("submitter", "steward", "auditor"))]
ProposalReader = Annotated[Subject, Depends(require_role("steward", "auditor"))]
AccessReader = Annotated[Subject, Depends(require_role("auditor"))]
BudgetReader = Annotated[Subject, Depends(require_role("submitter", "steward", "auditor", "admin"))]


def canonical_decimal(text: str) -> str:
    """`8`, `0.1`, `1e-6`: one text per number, so that equal terms give equal entries."""
    number = Decimal(text)
    plain = format(number.normalize(), "f") if number else "0"
    if not number or number >= Decimal("1e-4"):
        return plain
    mantissa, _, exponent = format(number.normalize(), "e").partition("e")
    return f"{mantissa}e{int(exponent)}"


DecimalText = Annotated[ExactDecimalText, AfterValidator(canonical_decimal)]


def plain_text(text: str) -> str:
    """The text, unless it holds control characters other than line breaks."""
    if any(unicodedata.category(char) in ("Cc", "Cs") and char != "\n" for char in text):
        raise PydanticCustomError("plain_text", "Write plain text without control characters.")
    return text


PersonalText = Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(plain_text)]


class StrictModel(BaseModel):
    """Refuses unknown fields."""

    model_config = ConfigDict(extra="forbid")


class GrantCreate(StrictModel):
    """The limit wanted after the grant. `alpha_star` and `delta`: fixed by the first one."""

    population: str = Field(max_length=64)
    epsilon: DecimalText
    delta: DecimalText | None = None
    alpha_star: int | None = Field(default=None, ge=2, le=64, strict=True)
    reason_code: Literal["study_start", "study_extension", "correction", "lowering"]
    justification: PersonalText | None = None


class ReleaseCreate(StrictModel):
    """Asks that the artifacts of one job may leave."""

    job: str = Field(max_length=64)
    justification: PersonalText | None = None


class RedactionCreate(StrictModel):
    """Which personal value of an entry to erase, and why the law allows or asks it."""

    path: Literal["justification"]
    legal_ground: LegalGround


class ApprovalCreate(StrictModel):
    """A steward's decision, signed outside the server (ledger.md 16.3)."""

    decision: Literal["approve", "reject"]
    signature: str = Field(min_length=88, max_length=88, pattern=r"^[A-Za-z0-9+/]{86}==$")


class RecoveryCreate(StrictModel):
    """Proposes to end a halt. The rule is named so that nobody signs it unread."""

    rule: Literal["charge_whole"]


class TableQuery(ListQuery):
    """A list as JSON or CSV."""

    format: Literal["json", "csv"] = "json"


class GrantQuery(TableQuery):
    """Which grants to list."""

    population: str | None = Field(default=None, max_length=64)


class ReleaseQuery(TableQuery):
    """Which releases to list."""

    job: str | None = Field(default=None, max_length=64)


class BudgetQuery(StrictModel):
    """Balances now, or as they stood after the entry of this index."""

    as_of: int | None = Field(default=None, ge=0, lt=2**53)


class HistoryQuery(StrictModel):
    """How many days back, and in which form."""

    days: int = Field(default=90, ge=1, le=DAYS_MAX)
    format: Literal["json", "csv"] = "json"


class LogQuery(StrictModel):
    """Which log; the tenant's newest if absent."""

    log: str | None = Field(default=None, max_length=64)


class DisclosureQuery(LogQuery):
    """Personal values of which entry; of the whole log if absent."""

    idx: int | None = Field(default=None, ge=0, lt=2**53)


class BundleQuery(LogQuery):
    """How far the bundle reaches, and from which earlier checkpoint its growth is proved."""

    size: int | None = Field(default=None, ge=1, lt=2**53)
    since: int | None = Field(default=None, ge=1, lt=2**53)
    system_since: int | None = Field(default=None, ge=1, lt=2**53)


class EntryQuery(LogQuery):
    """Which entries, oldest first; `after` is the last index seen."""

    population: str | None = Field(default=None, max_length=64)
    job: str | None = Field(default=None, max_length=64)
    type: str | None = Field(default=None, max_length=32)
    after: int = Field(default=-1, ge=-1, lt=2**53)
    limit: int = Field(default=100, ge=1, le=1000)
    format: Literal["json", "jsonl", "csv"] = "json"


class PageQuery(StrictModel):
    """A page of entries, oldest first; `after` is the id of the last one seen."""

    after: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_/]{1,64}#(0|[1-9][0-9]{0,15})$")
    limit: int = Field(default=100, ge=1, le=1000)
    format: Literal["json", "csv"] = "json"


class RefusalQuery(PageQuery):
    """Which refusals to list."""

    population: str | None = Field(default=None, max_length=64)


class AnomalyQuery(StrictModel):
    """Which kind of anomaly to list."""

    kind: str | None = Field(default=None, max_length=32)
    format: Literal["json", "csv"] = "json"


class InclusionQuery(LogQuery):
    """Which entry, and under the checkpoint of how many entries."""

    idx: int = Field(ge=0, lt=2**53)
    size: int | None = Field(default=None, ge=1, lt=2**53)


class ConsistencyQuery(LogQuery):
    """Between which two checkpoints."""

    from_size: int = Field(alias="from", ge=1, lt=2**53)
    to_size: int = Field(alias="to", ge=1, lt=2**53)


class TlogQuery(LogQuery):
    """Which entry."""

    entry: int = Field(ge=0, lt=2**53)


class ForecastCreate(StrictModel):
    """Jobs like one that is there, or jobs of a size: exactly one of the two."""

    population: str = Field(max_length=64)
    job: str | None = Field(default=None, max_length=64)
    reserve_pico: Annotated[int, Field(ge=1, lt=2**62)] | None = None

    @field_validator("reserve_pico", mode="before")
    @classmethod
    def _amount_is_text(cls, value: object) -> object:
        """Amounts travel as decimal text, so that no reader makes a float of one."""
        if value is None or (isinstance(value, str) and re.fullmatch(r"[1-9][0-9]{0,18}", value)):
            return value if value is None else int(str(value))
        raise PydanticCustomError("amount_text", "Write the amount as a string of digits.")

    @model_validator(mode="after")
    def _exactly_one_size(self) -> ForecastCreate:
        if (self.job is None) == (self.reserve_pico is None):
            raise PydanticCustomError("one_size", "Give either job or reserve_pico.")
        return self

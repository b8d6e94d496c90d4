"""Input models and callers of the ledger's routes. Numbers are read as decimal text."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from fastapi import Depends
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from service.auth.subject import Subject, require_role
from service.exact_json import DecimalText as ExactDecimalText
from service.listing import ListQuery

Steward = Annotated[Subject, Depends(require_role("steward"))]
LedgerReader = Annotated[Subject, Depends(require_role("submitter", "steward", "auditor"))]
ProposalReader = Annotated[Subject, Depends(require_role("steward", "auditor"))]
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


class ReleaseCreate(StrictModel):
    """Asks that the artifacts of one job may leave."""

    job: str = Field(max_length=64)


class ApprovalCreate(StrictModel):
    """A steward's decision, signed outside the server (ledger.md 16.3)."""

    decision: Literal["approve", "reject"]
    signature: str = Field(min_length=88, max_length=88, pattern=r"^[A-Za-z0-9+/]{86}==$")


class GrantQuery(ListQuery):
    """Which grants to list."""

    population: str | None = Field(default=None, max_length=64)


class ReleaseQuery(ListQuery):
    """Which releases to list."""

    job: str | None = Field(default=None, max_length=64)


class BudgetQuery(StrictModel):
    """Balances now, or as they stood after the entry of this index."""

    as_of: int | None = Field(default=None, ge=0, lt=2**53)


class LogQuery(StrictModel):
    """Which log; the tenant's newest if absent."""

    log: str | None = Field(default=None, max_length=64)


class BundleQuery(LogQuery):
    """How far the bundle reaches, and from which earlier checkpoint its growth is proved."""

    size: int | None = Field(default=None, ge=1, lt=2**53)
    since: int | None = Field(default=None, ge=1, lt=2**53)


class EntryQuery(LogQuery):
    """Which entries, oldest first; `after` is the last index seen."""

    population: str | None = Field(default=None, max_length=64)
    job: str | None = Field(default=None, max_length=64)
    type: str | None = Field(default=None, max_length=32)
    after: int = Field(default=-1, ge=-1, lt=2**53)
    limit: int = Field(default=100, ge=1, le=1000)
    format: Literal["json", "jsonl", "csv"] = "json"

"""The ledger as jobs and workers see it. Jobs are opaque references here.

Every function takes an open session; the caller owns the transaction and, on an error,
lets it roll back. Each write is idempotent by an id made from domain ids.
"""

from __future__ import annotations

from service.ledger.charges import (
    abandon_window,
    charge_query,
    charge_window,
    finish_window,
    open_window,
    position,
)
from service.ledger.entries import Receipt
from service.ledger.pricing import BlockReserve, block_reserves, price_of_step
from service.ledger.reservations import record_refusal, reserve, settle, start_attempt
from service.ledger.views import (
    BlockBudget,
    PopulationBudget,
    epsilon_limits,
    job_statement,
)

__all__ = [
    "BlockBudget",
    "BlockReserve",
    "PopulationBudget",
    "Receipt",
    "abandon_window",
    "block_reserves",
    "charge_query",
    "charge_window",
    "epsilon_limits",
    "finish_window",
    "job_statement",
    "open_window",
    "position",
    "price_of_step",
    "record_refusal",
    "reserve",
    "settle",
    "start_attempt",
]

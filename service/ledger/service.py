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
from service.ledger.job_audits import (
    Commitment,
    commit_audit,
    commitment_of,
    has_incident,
    record_incident,
    reveal_audit,
)
from service.ledger.pricing import BlockReserve, block_reserves, price_of_step
from service.ledger.reservations import (
    end_attempt,
    record_refusal,
    refusal_idem,
    reserve,
    settle,
    start_attempt,
    unspent,
)
from service.ledger.views import (
    BlockBudget,
    PopulationBudget,
    epsilon_limits,
    job_history,
    job_statement,
)

__all__ = [
    "BlockBudget",
    "BlockReserve",
    "Commitment",
    "PopulationBudget",
    "Receipt",
    "abandon_window",
    "block_reserves",
    "charge_query",
    "charge_window",
    "commit_audit",
    "commitment_of",
    "end_attempt",
    "epsilon_limits",
    "finish_window",
    "has_incident",
    "job_history",
    "job_statement",
    "open_window",
    "position",
    "price_of_step",
    "record_incident",
    "record_refusal",
    "refusal_idem",
    "reserve",
    "reveal_audit",
    "settle",
    "start_attempt",
    "unspent",
]

"""How many more jobs of one size a population can pay for (ledger.md 13, question 11)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from service.ledger import repository
from service.ledger.errors import LedgerNotFound


def forecast(
    session: Session,
    *,
    tenant_id: str,
    population_id: str,
    like_job: str | None,
    reserve_pico: int | None,
) -> dict[str, Any]:
    """Whole jobs that fit into what is free now, each block by itself.

    Every job is counted with its full reservation: what it returns at its end comes on top.

    Raises:
        LedgerNotFound: no such population, or no such job of it.
    """
    population = repository.visible_population(session, tenant_id, population_id)
    sums = repository.balances(session, population_id)
    free = {block: sums.get(block, {}).get("budget", 0) for block in population.blocks}
    if like_job is not None:
        need: Mapping[str, int] = _reserved(session, tenant_id, population_id, like_job)
    else:
        assert reserve_pico is not None, "checked where the body is read"
        need = {"train": reserve_pico}
    jobs = min(free[block] // amount for block, amount in need.items() if amount)
    after = {block: free[block] - jobs * need.get(block, 0) for block in free}
    return {
        "object": "ledger.forecast",
        "population": population_id,
        "jobs": jobs,
        "reserve_pico": str(need["train"]),
        "free_pico": str(free["train"]),
        "free_after_pico": str(after["train"]),
        "blocks": [
            {
                "block": block,
                "reserve_pico": str(need.get(block, 0)),
                "free_pico": str(free[block]),
                "free_after_pico": str(after[block]),
            }
            for block in population.blocks
        ],
    }


def _reserved(session: Session, tenant_id: str, population_id: str, job_id: str) -> dict[str, int]:
    held = repository.visible_reservation(session, tenant_id, job_id)
    if held.population_id != population_id:
        raise LedgerNotFound("job")
    return {block.block: block.reserved_pico for block in repository.blocks_of(session, job_id)}

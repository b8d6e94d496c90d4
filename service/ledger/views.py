"""Shows balances, limits and job statements, each epsilon with its whole claim (P13)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.orm import Session

from dp_core.accounting import epsilon_so_far
from dp_core.events import PoissonGaussian
from service.ledger import repository, spend
from service.ledger.accounts import account_of
from service.ledger.errors import LedgerNotFound
from service.ledger.job_audits import has_incident
from service.ledger.models import Reservation
from service.populations.models import Population


def utc_text(time_us: int) -> str:
    """RFC 3339, UTC, whole seconds: how native objects show times (service.md 2.2)."""
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, kw_only=True)
class BlockBudget:
    """Balances of one block, in pico-RDP at the population's order."""

    block: str
    limit_pico: int
    held_pico: int
    spent_pico: int
    free_pico: int
    epsilon_so_far: str  # "0" before anything was charged; never a guarantee


@dataclass(frozen=True, kw_only=True)
class PopulationBudget:
    """The limit of a population and what became of it, block by block.

    `alpha_star`, `delta` and `epsilon_limit` are None before the first effective grant.
    """

    population_id: str
    tenant_id: str
    unit: str
    relation: str
    patients_public: int
    validation_fraction: str
    alpha_star: int | None
    delta: str | None
    epsilon_limit: str | None
    limit_pico: int | None
    blocks: tuple[BlockBudget, ...]
    log: str | None
    idx: int | None

    def to_dict(self) -> dict[str, Any]:
        """The train block in the shape of ledger.md 13, and all blocks under `blocks`."""
        blocks = [self._block(block) for block in self.blocks]
        return {**blocks[0], "blocks": blocks}

    def _block(self, block: BlockBudget) -> dict[str, Any]:
        limit = {
            "epsilon": self.epsilon_limit,
            "pico": str(block.limit_pico),
            "guarantee": self.limit_pico is not None,
        }
        return {
            "object": "budget",
            "population": self.population_id,
            "unit": self.unit,
            "block": block.block,
            "relation": self.relation,
            "alpha_star": self.alpha_star,
            "delta": self.delta,
            "rule": "rdp_filter_fixed_order",
            "limit": limit,
            "held_pico": str(block.held_pico),
            "spent_pico": str(block.spent_pico),
            "free_pico": str(block.free_pico),
            "epsilon_so_far": {"value": block.epsilon_so_far, "guarantee": False},
            "at": {"log": self.log, "idx": self.idx, "state": "stored", "witnesses": "none"},
        }


def epsilon_limits(session: Session, population_id: str) -> PopulationBudget:
    """The budget of one population. The caller has checked who may see it.

    Raises:
        LedgerNotFound: no such population.
    """
    population = session.get(Population, population_id)
    if population is None:
        raise LedgerNotFound("population")
    sums = repository.balances(session, population_id)
    head = repository.head_of(session, population.tenant_id)
    return PopulationBudget(
        population_id=population.id,
        tenant_id=population.tenant_id,
        unit=population.unit,
        relation=population.relation,
        patients_public=population.patients_public,
        validation_fraction=population.validation_fraction,
        alpha_star=population.alpha_star,
        delta=population.delta,
        epsilon_limit=population.epsilon_limit,
        limit_pico=population.limit_pico,
        blocks=tuple(
            _block_budget(session, population, block, sums.get(block, {}))
            for block in population.blocks
        ),
        log=None if head is None else head.log_id,
        idx=None if head is None else head.size - 1,
    )


def budget_as_of(session: Session, population_id: str, idx: int) -> PopulationBudget:
    """The budget as it stood after entry `idx` of the newest log, from the entries alone.

    Raises:
        LedgerNotFound: no such population, or the log does not reach that far.
    """
    now = epsilon_limits(session, population_id)
    if now.log is None or now.idx is None or idx > now.idx:
        raise LedgerNotFound("entry")
    bodies = repository.bodies_of_population(session, now.log, population_id, idx)
    granted = next((b["data"] for b in reversed(bodies) if b["type"] == "grant.effective"), None)
    sums: dict[str, dict[str, int]] = {}
    events: dict[str, list[PoissonGaussian]] = {}
    for body in bodies:
        for name, amount in body["post"]:
            block, kind = account_of(name)
            of_block = sums.setdefault(block, {})
            of_block[kind] = of_block.get(kind, 0) + int(amount)
        if body["type"] in ("window.charge", "query.charge"):
            data = body["data"]
            events.setdefault(data.get("block", "train"), []).append(
                PoissonGaussian(
                    q=data["q"], noise_multiplier=data["level"], steps=data.get("steps", 1)
                )
            )
    return replace(
        now,
        alpha_star=granted and granted["alpha_star"],
        delta=granted and granted["delta"],
        epsilon_limit=granted and granted["epsilon"],
        limit_pico=int(granted["limit"]) if granted else None,
        idx=idx,
        blocks=tuple(
            _from_sums(
                block.block,
                sums.get(block.block, {}),
                epsilon_so_far(events.get(block.block, []), granted["delta"]) if granted else "0",
            )
            for block in now.blocks
        ),
    )


def _from_sums(block: str, sums: dict[str, int], so_far: str) -> BlockBudget:
    return BlockBudget(
        block=block,
        limit_pico=-sums.get("issuance", 0),
        held_pico=sums.get("escrow", 0),
        spent_pico=sums.get("spent", 0),
        free_pico=sums.get("budget", 0),
        epsilon_so_far=so_far,
    )


def _block_budget(
    session: Session, population: Population, block: str, sums: dict[str, int]
) -> BlockBudget:
    return _from_sums(block, sums, spend.of_population(session, population, block))


def job_statement(session: Session, job_id: str) -> dict[str, Any]:
    """Everything the ledger knows about one job: amounts in pico, windows, claim, indexes.

    Raises:
        LedgerNotFound: the job reserved nothing.
    """
    held = session.get(Reservation, job_id)
    if held is None:
        raise LedgerNotFound("job")
    session.refresh(held)
    entries = repository.entries_of_job(session, job_id)
    terms = next(entry["data"] for entry in entries if entry["type"] == "reserve")
    return {
        "object": "ledger.job_statement",
        "job": job_id,
        "population": held.population_id,
        "log": held.log_id,
        "state": held.state,
        "disputed": has_incident(session, job_id),
        "unit": terms["unit"],
        "relation": terms["relation"],
        "alpha_star": held.alpha_star,
        "plan": held.plan_digest,
        "claim": claim_of(terms),
        "job_limit": str(held.job_limit),
        "job_spent": str(held.job_spent),
        "blocks": _blocks(session, held, terms),
        "attempts": [_attempt(entry) for entry in entries if entry["type"] == "attempt.started"],
        "windows": _windows(entries),
        "queries": [_charge(entry) for entry in entries if entry["type"] == "query.charge"],
        "settled": next((_charge(e) for e in entries if e["type"] == "settle"), None),
        "entries": [{"idx": e["idx"], "type": e["type"], "leaf": e["leaf"]} for e in entries],
    }


def job_history(session: Session, job_id: str) -> dict[str, Any]:
    """Attempts of a job and what became of each window, from its entries; nothing recomputed.

    Windows keep their order of charging: one that was lost stands before its repetition.
    """
    entries = repository.entries_of_job(session, job_id)
    return {
        "attempts": [_attempt(entry) for entry in entries if entry["type"] == "attempt.started"],
        "windows": _windows(entries),
    }


def claim_of(terms: dict[str, Any]) -> dict[str, Any]:
    """The guarantee a job was admitted under; an early stop lowers nothing (ledger.md 3.6)."""
    return {
        "epsilon": terms["epsilon"],
        "delta": terms["delta"],
        "unit": terms["unit"],
        "relation": terms["relation"],
        "rule": terms["rule"],
        "alpha_job": terms["alpha_job"],
        "steps_started_max": terms["steps_started_max"],
        "scope": "this job, training block",
        "guarantee": True,
    }


def _blocks(session: Session, held: Reservation, terms: dict[str, Any]) -> list[dict[str, Any]]:
    delta, is_fixed = terms["delta"], terms["rule"] == "pld_fixed_schedule"
    return [
        {
            "block": block.block,
            "q": block.q,
            "steps_max": block.steps_max,
            "steps_started": block.steps_started,
            "reserved_pico": str(block.reserved_pico),
            "spent_pico": str(block.spent_pico),
            "held_pico": (
                str(block.reserved_pico - block.spent_pico) if held.state == "open" else "0"
            ),
            "epsilon_so_far": {
                "value": epsilon_so_far(
                    spend.events_of_job(session, held.job_id, block.block),
                    delta,
                    is_fixed_schedule=is_fixed,
                ),
                "delta": delta,
                "guarantee": False,
            },
        }
        for block in repository.blocks_of(session, held.job_id)
    ]


def _attempt(entry: dict[str, Any]) -> dict[str, Any]:
    data = entry["data"]
    return {"epoch": data["epoch"], "worker": data["worker"], "time": entry["ts"]}


def _charge(entry: dict[str, Any]) -> dict[str, Any]:
    return {"idx": entry["idx"], "time": entry["ts"], **entry["data"]}


def _windows(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    windows: dict[int, dict[str, Any]] = {}
    for entry in entries:
        data = entry["data"]
        if entry["type"] == "window.charge":
            windows[data["window"]] = {**_charge(entry), "outcome": "open", "steps_run": None}
        elif entry["type"] == "window.done":
            windows[data["window"]] |= {"outcome": "done", "steps_run": data["steps_run"]}
        elif entry["type"] == "window.abandoned":
            windows[data["window"]] |= {"outcome": "abandoned", "reason": data["reason"]}
    return list(windows.values())

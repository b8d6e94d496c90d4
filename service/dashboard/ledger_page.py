"""What the auditor's pages show: budgets, filtered entries, oddities, and the check of one job."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from dp_core.accounting import epsilon_so_far
from dp_core.events import PoissonGaussian
from service.auth.subject import Subject
from service.dashboard.overview import Budget, LedgerLine, budget_of, line_of
from service.ledger import checkpoints, entry_types, evidence, fsck, merkle, repository
from service.ledger.anomalies import Anomaly, anomalies_of
from service.ledger.entries import leaf_of
from service.ledger.errors import LedgerNotFound
from service.ledger.findings import Finding
from service.ledger.models import Entry, LogHead, SignedCheckpoint
from service.ledger.schemas import EntryQuery
from service.ledger.standing import Standing, standing_of
from service.ledger.views import job_statement
from service.populations.models import Population
from service.populations.service import visible_populations

POPULATIONS_SHOWN = 50
PAGE_ENTRIES = 50


@dataclass(frozen=True, kw_only=True)
class Row:
    """One entry, how firmly it stands, and what it charged."""

    line: LedgerLine
    state: str
    leaf: str
    charge_pico: str


@dataclass(frozen=True, kw_only=True)
class LedgerPage:
    """`following` is the index to go on after, None on the last page."""

    budgets: tuple[Budget, ...]
    populations: tuple[Population, ...]
    rows: tuple[Row, ...]
    following: int | None
    query: EntryQuery
    types: tuple[str, ...]
    anomalies: tuple[Anomaly, ...]
    head: LogHead | None
    standing: Standing


@dataclass(frozen=True, kw_only=True)
class CheckedEntry:
    """One link of the chain: did body, leaf, predecessor and proof agree?"""

    idx: int
    type: str
    leaf: str
    is_leaf_right: bool
    is_linked: bool
    is_included: bool | None  # None: no signed checkpoint covers it yet


@dataclass(frozen=True, kw_only=True)
class CheckedBlock:
    """What the entries say was charged, beside what the tables say."""

    block: str
    recorded_pico: int
    recomputed_pico: int
    epsilon_recorded: str
    epsilon_recomputed: str


@dataclass(frozen=True, kw_only=True)
class CheckPage:
    job_id: str
    statement: dict[str, Any]
    entries: tuple[CheckedEntry, ...]
    blocks: tuple[CheckedBlock, ...]
    findings: tuple[Finding, ...]
    checkpoint: SignedCheckpoint | None
    note: str
    has_certificate: bool

    @property
    def is_sound(self) -> bool:
        return (
            not self.findings
            and all(
                e.is_leaf_right and e.is_linked and e.is_included is not False for e in self.entries
            )
            and all(
                (b.recorded_pico, b.epsilon_recorded) == (b.recomputed_pico, b.epsilon_recomputed)
                for b in self.blocks
            )
        )


def ledger_page(session: Session, subject: Subject, query: EntryQuery) -> LedgerPage:
    """Everything on the page; filters narrow the entries only."""
    statement = visible_populations(subject.tenant_id).order_by(Population.created_at)
    populations = tuple(session.scalars(statement.limit(POPULATIONS_SHOWN)))
    head = repository.head_of(session, subject.tenant_id, query.log)
    standing = standing_of(session, head.log_id if head else "")
    found = filtered_entries(session, subject.tenant_id, query, limit=PAGE_ENTRIES + 1)
    shown = found[:PAGE_ENTRIES]
    return LedgerPage(
        budgets=tuple(budget_of(session, population) for population in populations),
        populations=populations,
        rows=tuple(_row(entry, standing) for entry in shown),
        following=shown[-1].idx if len(found) > PAGE_ENTRIES else None,
        query=query,
        types=entry_types.LEDGER,
        anomalies=tuple(anomalies_of(session, subject.tenant_id)),
        head=head,
        standing=standing,
    )


def filtered_entries(
    session: Session, tenant_id: str, query: EntryQuery, *, limit: int
) -> Sequence[Entry]:
    """Entries of one log of the tenant after `query.after`; empty filters ask for all."""
    head = repository.head_of(session, tenant_id, query.log)
    statement = repository.visible_entries(tenant_id).where(
        Entry.log_id == (head.log_id if head else ""), Entry.idx > query.after
    )
    for column, wanted in (
        (Entry.population_id, query.population),
        (Entry.job_id, query.job),
        (Entry.type, query.type),
    ):
        if wanted:
            statement = statement.where(column == wanted)
    return session.scalars(statement.limit(limit)).all()


def _row(entry: Entry, standing: Standing) -> Row:
    data = json.loads(entry.body)["data"]
    return Row(
        line=line_of(entry),
        state=standing.state_of(entry.idx),
        leaf=entry.leaf,
        charge_pico=data.get("charge", ""),
    )


def check_page(session: Session, subject: Subject, job_id: str) -> CheckPage:
    """Recomputes one job from its stored bytes: hashes, links, proofs, charges, epsilon.

    Raises:
        LedgerNotFound: the job reserved nothing, or is another tenant's.
    """
    held = repository.visible_reservation(session, subject.tenant_id, job_id)
    of_job = select(Entry).where(Entry.job_id == job_id).order_by(Entry.idx)
    entries = session.scalars(of_job).all()
    signed = checkpoints.newest(session, held.log_id)
    statement = job_statement(session, job_id)
    return CheckPage(
        job_id=job_id,
        statement=statement,
        entries=tuple(_checked(session, entry, signed) for entry in entries),
        blocks=_blocks(statement),
        findings=tuple(fsck.check_job(session, job_id)),
        checkpoint=signed,
        note="" if signed is None else checkpoints.full_note(session, signed),
        has_certificate=bool((statement["settled"] or {}).get("certificate")),
    )


def _checked(session: Session, entry: Entry, signed: SignedCheckpoint | None) -> CheckedEntry:
    body = json.loads(entry.body)
    before = session.get(Entry, (entry.log_id, entry.idx - 1)) if entry.idx else None
    included = None
    if signed is not None and entry.idx < signed.size:
        path = evidence.inclusion(session, entry.log_id, entry.idx, signed.size)
        leaf = leaf_of(entry.body.encode())
        included = merkle.includes(
            leaf=leaf, index=entry.idx, size=signed.size, path=path, root=signed.root
        )
    return CheckedEntry(
        idx=entry.idx,
        type=entry.type,
        leaf=entry.leaf,
        is_leaf_right=leaf_of(entry.body.encode()) == entry.leaf,
        is_linked=before is None or body["prev"] == before.leaf,
        is_included=included,
    )


def _blocks(statement: dict[str, Any]) -> tuple[CheckedBlock, ...]:
    claim = statement["claim"]
    charges = [("train", one) for one in statement["windows"]]
    charges += [(one.get("block", "train"), one) for one in statement["queries"]]
    checked = []
    for block in statement["blocks"]:
        own = [one for name, one in charges if name == block["block"]]
        steps: Counter[tuple[str, str]] = Counter()
        for charge in own:
            steps[charge["q"], charge["level"]] += charge.get("steps", 1)
        events = [PoissonGaussian(q=q, noise_multiplier=s, steps=n) for (q, s), n in steps.items()]
        again = epsilon_so_far(
            events, claim["delta"], is_fixed_schedule=claim["rule"] == "pld_fixed_schedule"
        )
        checked.append(
            CheckedBlock(
                block=block["block"],
                recorded_pico=int(block["spent_pico"]),
                recomputed_pico=sum(int(c["charge"]) for c in own),
                epsilon_recorded=block["epsilon_so_far"]["value"],
                epsilon_recomputed=again if events else "0",
            )
        )
    return tuple(checked)


def visible_head(session: Session, subject: Subject, log_id: str | None) -> LogHead:
    """The tenant's log.

    Raises:
        LedgerNotFound: there is none of that name.
    """
    head = repository.head_of(session, subject.tenant_id, log_id)
    if head is None:
        raise LedgerNotFound("log")
    return head

"""Checks the invariants of the ledger from its rows (ledger.md 5): I1-I11, I13-I17.

Reads only. Each finding names the invariant and where it broke; an empty list means that
every check passed. The standalone verifier checks the same from outside. What lies beside
the entries is checked by `fsck_evidence`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dp_core.accounting import step_pico
from dp_core.errors import PlanInvalid
from dp_core.events import canonical_json
from dp_core.noise_schedule import NoiseSchedule
from service.ledger import merkle, tiles
from service.ledger.disclosures import Vault
from service.ledger.entries import NO_LEAF, leaf_of
from service.ledger.entry_types import is_known
from service.ledger.findings import Finding
from service.ledger.fsck_evidence import check_evidence
from service.ledger.models import (
    Account,
    Approval,
    Entry,
    LogHead,
    Posting,
    Reservation,
    ReservationBlock,
    SignedCheckpoint,
    TreeTile,
    WindowSettings,
)
from service.populations.models import Population

POSTING_TYPES = frozenset(
    {"grant.effective", "reserve", "window.charge", "query.charge", "settle", "correction"}
)
AFTER_SETTLE = frozenset(
    {
        "release.requested",
        "release.approved",
        "release.rejected",
        "release.published",
        "correction",
    }
)


@dataclass(kw_only=True)
class _Job:
    """What the entries of one job say while they are replayed."""

    reserved: int = 0
    settled: bool = False
    epoch: int = 0
    windows: int = 0
    queries: int = 0
    steps: int = 0
    spent: int = 0
    job_limit: int = 0
    steps_max: int = 0
    schedule: NoiseSchedule | None = None  # of a job of fixed noise
    escrow: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def check_all(
    session: Session,
    *,
    vault: Vault | None = None,
    certificates: Sequence[x509.Certificate] = (),
) -> list[Finding]:
    """Every check over every log. `vault` and `certificates`: as in `check_evidence`.

    Raises:
        DisclosuresUnavailable: the vault's own key is missing.
    """
    findings: list[Finding] = []
    for head in session.scalars(select(LogHead).order_by(LogHead.log_id)):
        replay = Replay(head.log_id)
        replay.advance(session, head)
        replay.check_tiles()
        findings += replay.findings
    findings += check_balances(session, _posted(session))
    findings += check_populations(session)
    return findings + check_evidence(session, vault=vault, certificates=certificates)


def check_job(session: Session, job_id: str) -> list[Finding]:
    """The amounts of one job: charges recomputed, counters equal to entries (I7, I8)."""
    held = session.get(Reservation, job_id)
    if held is None:
        return [Finding(invariant="I6", subject=job_id, problem="no reservation")]
    findings: list[Finding] = []
    job_spent = 0
    spent: dict[str, int] = defaultdict(int)
    rows = session.execute(
        select(Entry.body).where(
            Entry.job_id == job_id, Entry.type.in_(("window.charge", "query.charge"))
        )
    )
    for (body,) in rows:
        data = json.loads(body)["data"]
        price = data.get("steps", 1) * step_pico(data["q"], data["level"], held.alpha_star)
        if price != int(data["charge"]):
            findings.append(
                Finding(invariant="I8", subject=job_id, problem="a charge is not its level's price")
            )
        spent[data.get("block", "train")] += int(data["charge"])
        job_spent += int(data.get("job_charge", "0"))
    for block in session.scalars(select(ReservationBlock).where(ReservationBlock.job_id == job_id)):
        if spent[block.block] != block.spent_pico:
            findings.append(
                Finding(invariant="I8", subject=job_id, problem=f"spent of {block.block} differs")
            )
    if job_spent != held.job_spent or job_spent > held.job_limit:
        findings.append(Finding(invariant="I8", subject=job_id, problem="job_spent differs"))
    return findings


class Replay:
    """Reads one log from its first entry and compares each with its rows.

    `advance` may be called again, with a newer snapshot, and then reads only what is new.
    """

    def __init__(self, log_id: str) -> None:
        self.log_id = log_id
        self.findings: list[Finding] = []
        self.jobs: dict[str, _Job] = defaultdict(_Job)
        self.posted: dict[str, int] = defaultdict(int)  # by account, of the postings read
        self.size, self.prev, self.ts = 0, NO_LEAF, ""
        self.frontier: list[str] = []
        self.signed_size = 0
        self.session: Session
        self.head: LogHead
        self.postings: dict[int, dict[str, int]]

    def _load_postings(self) -> dict[int, dict[str, int]]:
        found: dict[int, dict[str, int]] = defaultdict(dict)
        rows = self.session.execute(
            select(Posting.idx, Posting.account_id, Posting.amount_pico).where(
                Posting.log_id == self.log_id, Posting.idx >= self.size
            )
        )
        for idx, account_id, amount in rows:
            found[idx][account_id] = amount
        return found

    def _load_signed(self) -> dict[int, str]:
        """Roots by size of the checkpoints not seen yet; those of read sizes are compared here."""
        rows = self.session.scalars(
            select(SignedCheckpoint).where(
                SignedCheckpoint.log_id == self.log_id, SignedCheckpoint.size > self.signed_size
            )
        )
        signed = {row.size: row.root for row in rows}
        self.signed_size = max(signed, default=self.signed_size)
        read = tiles.node_reader(self.session, self.log_id)
        for size in sorted(size for size in signed if 0 < size <= self.size):
            if signed.pop(size) != merkle.root_at(size, read):
                self._report("I10", self.log_id, f"the checkpoint of size {size} has another root")
        return signed

    def advance(self, session: Session, head: LogHead) -> None:
        """Reads on to the head; findings are added to `findings`."""
        self.session, self.head = session, head
        self.postings, signed = self._load_postings(), self._load_signed()
        rows = session.scalars(
            select(Entry)
            .where(Entry.log_id == self.log_id, Entry.idx >= self.size)
            .order_by(Entry.idx)
        )
        for entry in rows:
            body = self._body(entry)
            if body is None:
                return
            self._take(entry, body)
            root = signed.pop(self.size, None)
            if root not in (None, merkle.EMPTY, merkle.root_of(self.frontier)):
                self._report("I10", self._at(entry), "the checkpoint of this size has another root")
        if (self.size, self.prev) != (head.size, head.last_leaf):
            self._report("I9", self.log_id, "the head does not fit the last entry")
        if " ".join(self.frontier) != head.frontier:
            self._report("I9", self.log_id, "the tree does not fit the entries")
        if signed:
            self._report("I10", self.log_id, "the log is shorter than a checkpoint of it")

    def _take(self, entry: Entry, body: dict[str, Any]) -> None:
        self._chain(entry, body, self.size, self.prev, self.ts)
        self._columns(entry, body)
        self._post(entry, body)
        self._job(entry, body)
        self._approvals(entry, body)
        for account_id, amount in self.postings.get(entry.idx, {}).items():
            self.posted[account_id] += amount
        self.frontier = merkle.grow(self.frontier, self.size, entry.leaf)
        self.size, self.prev, self.ts = self.size + 1, entry.leaf, entry.ts

    def check_tiles(self) -> None:
        """Tiles only copy the tree; a wrong one would make proofs that fail."""
        stored = select(TreeTile).where(TreeTile.log_id == self.head.log_id)
        for tile in self.session.scalars(stored.order_by(TreeTile.level, TreeTile.number)):
            read = tiles.node_reader(self.session, self.head.log_id)
            below = read.below(tile.level, tile.number, tiles.WIDTH)
            if not tiles.is_copy(tile.hashes, below):
                self._report("I9", self.head.log_id, f"tile {tile.level}/{tile.number} differs")

    def _report(self, invariant: str, subject: str, problem: str) -> None:
        self.findings.append(Finding(invariant=invariant, subject=subject, problem=problem))

    def _at(self, entry: Entry) -> str:
        return f"{entry.log_id}#{entry.idx}"

    def _body(self, entry: Entry) -> dict[str, Any] | None:
        try:
            body: dict[str, Any] = json.loads(entry.body)
            canonical = canonical_json(body).decode()
        except (ValueError, PlanInvalid):
            canonical = ""
        if canonical != entry.body:
            self._report("I14", self._at(entry), "the body is not canonical")
            return None
        if not is_known(body["type"], body["v"]):
            self._report("I14", self._at(entry), "unknown type or version")
            return None  # what it means nobody can say, so nothing after it counts
        return body

    def _chain(self, entry: Entry, body: dict[str, Any], idx: int, prev: str, ts: str) -> None:
        if entry.idx != idx or body["idx"] != idx:
            self._report("I9", self._at(entry), f"index {idx} expected")
        if body["prev"] != prev:
            self._report("I9", self._at(entry), "prev is not the leaf before")
        if leaf_of(entry.body.encode()) != entry.leaf:
            self._report("I9", self._at(entry), "the leaf is not the hash of the body")
        if body["ts"] < ts:
            self._report("I9", self._at(entry), "time falls")

    def _columns(self, entry: Entry, body: dict[str, Any]) -> None:
        columns = (entry.log_id, entry.type, entry.ts, entry.actor, entry.population_id, entry.idem)
        told = tuple(body[key] for key in ("log", "type", "ts", "actor", "pop", "idem"))
        if columns != told:
            self._report("I14", self._at(entry), "columns differ from the body")

    def _post(self, entry: Entry, body: dict[str, Any]) -> None:
        told = {f"{body['pop']}/{name}": int(amount) for name, amount in body["post"]}
        if told != self.postings.get(entry.idx, {}):
            self._report("I4", self._at(entry), "postings differ from the body")
        if sum(told.values()):
            self._report("I3", self._at(entry), "postings do not sum to 0")
        if told and entry.type not in POSTING_TYPES:
            self._report("I3", self._at(entry), f"{entry.type} must not post")
        falls = any(name.endswith("spent") and int(amount) < 0 for name, amount in body["post"])
        if falls and entry.type != "correction":
            self._report("I5", self._at(entry), "spent falls")

    def _job(self, entry: Entry, body: dict[str, Any]) -> None:
        for name, amount in body["post"]:  # a correction moves escrows and is of no job
            owner = name.partition("escrow:")[2]
            if owner:
                self.jobs[owner].escrow[name] += int(amount)
        if entry.job_id is None:
            return
        job, data, at = self.jobs[entry.job_id], body["data"], self._at(entry)
        if job.settled and entry.type not in AFTER_SETTLE:
            self._report("I6", at, f"{entry.type} after settle")
        if entry.type == "reserve":
            job.reserved += 1
            job.job_limit = int(data["job_limit"])
            job.steps_max = data["steps_started_max"]
            if data["schedule"] is not None:
                job.schedule = NoiseSchedule.from_list(data["schedule"])
            if job.reserved > 1:
                self._report("I6", at, "a second reserve")
        elif entry.type == "attempt.started":
            if data["epoch"] <= job.epoch:
                self._report("I7", at, "the epoch does not grow")
            job.epoch = data["epoch"]
        elif entry.type == "window.charge":
            self._window(job, data, at)
        elif entry.type == "query.charge":
            if data["query"] != job.queries or data["epoch"] != job.epoch:
                self._report("I7", at, "query out of order, or of another epoch")
            job.queries += 1
        elif entry.type == "settle":
            job.settled = True
            if any(job.escrow.values()):
                self._report("I6", at, "escrow left after settle")

    def _window(self, job: _Job, data: dict[str, Any], at: str) -> None:
        if data["epoch"] != job.epoch:
            self._report("I7", at, "a charge of another epoch than the latest attempt")
        if data["window"] != job.windows:
            self._report("I7", at, f"window {job.windows} expected")
        job.windows += 1
        if not _is_scheduled(job, data):
            self._report("I8", at, "another level than the schedule has here")
        job.steps += data["steps"]
        job.spent += int(data["job_charge"])
        if job.spent > job.job_limit or job.steps > job.steps_max:
            self._report("I8", at, "the job's limit is passed")
        stored = self.session.get(WindowSettings, data["settings"])
        if stored is None:
            self._report("I4", at, "the window's settings are missing")

    def _approvals(self, entry: Entry, body: dict[str, Any]) -> None:
        if entry.type not in ("grant.effective", "release.published", "restore.effective"):
            return
        data, at = body["data"], self._at(entry)
        approvers = self.session.scalars(
            select(Approval.approver).where(
                Approval.log_id == entry.log_id,
                Approval.idx == data["proposal"],
                Approval.decision == "approve",
            )
        ).all()
        told = {approval["approver"] for approval in data["approvals"]}
        if len(told) < 2 or not told <= set(approvers):
            self._report("I11", at, "not approved by two people")


def _is_scheduled(job: _Job, data: Mapping[str, Any]) -> bool:
    """Whether a window has the level that was registered for its steps."""
    if job.schedule is None or job.steps + data["steps"] > job.schedule.steps:
        return True  # past the end is its own finding
    level, steps = job.schedule.at(job.steps)
    return bool(data["level"] == level and data["steps"] <= steps)


def _posted(session: Session) -> dict[str, int]:
    """The sum of all postings of each account."""
    sums = select(Posting.account_id, func.sum(Posting.amount_pico)).group_by(Posting.account_id)
    return {account_id: int(total) for account_id, total in session.execute(sums)}


def check_balances(session: Session, posted: Mapping[str, int]) -> list[Finding]:
    """I1, I2 and I4 of every account, against the sums of its postings."""
    findings = []
    for population, block, total in session.execute(
        select(Account.population_id, Account.block, func.sum(Account.balance_pico)).group_by(
            Account.population_id, Account.block
        )
    ):
        if total != 0:
            findings.append(
                Finding(invariant="I1", subject=f"{population}/{block}", problem=f"sum {total}")
            )
    for account in session.scalars(select(Account).execution_options(populate_existing=True)):
        if account.balance_pico < 0 and account.kind != "issuance":
            findings.append(Finding(invariant="I2", subject=account.id, problem="negative"))
        if account.balance_pico != posted.get(account.id, 0):
            findings.append(
                Finding(invariant="I4", subject=account.id, problem="not the sum of its postings")
            )
    return findings


def check_populations(session: Session) -> list[Finding]:
    """I13: order and delta stand as first granted, unit, relation and blocks as registered."""
    findings = []
    statement = select(Entry.population_id, Entry.type, Entry.body).where(
        Entry.type.in_(("population.registered", "grant.effective"))
    )
    for population_id, kind, body in session.execute(
        statement.order_by(Entry.log_id, Entry.idx)
    ).all():
        population = session.get(Population, population_id)
        data = json.loads(body)["data"]
        if population is None:
            same = False
        elif kind == "grant.effective":
            same = (data["alpha_star"], data["delta"]) == (population.alpha_star, population.delta)
        else:
            same = (data["unit"], data["relation"], tuple(data["blocks"])) == (
                population.unit,
                population.relation,
                population.blocks,
            )
        if not same:
            findings.append(
                Finding(invariant="I13", subject=str(population_id), problem=f"differs from {kind}")
            )
    return findings

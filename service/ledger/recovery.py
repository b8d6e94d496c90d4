"""Leaving `halted`: two stewards sign, and every unit that may be missing is spent (P14).

A restored backup lacks charges, and whole reservations, that nobody can list from a size
and a root alone. So all that a population has free and all that its jobs hold is moved to
spent, at the last approval and in its transaction. Training goes on after a new grant,
which again needs two people. One thing the rule cannot see: a limit that was raised after
the backup is lost with what was spent of it. The stewards who signed that raise sign it again,
as a grant, while the ledger is halted; it is then spent with the rest. So a proposal shows the
limits that the restored books know.

Guarantee: no single person lifts the halt; each tenant's own stewards sign for its log;
the halt stays until every ledger of the deployment was settled so, and until no invariant
is broken (ledger.md 19.1).
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.ids import new_id
from service.ledger import accounts, approvals, checkpoints, fsck, guard, repository
from service.ledger.accounts import name_of
from service.ledger.approvals import Decision
from service.ledger.entries import SYSTEM, Draft, Movement, Receipt, append, log_of
from service.ledger.errors import LedgerBroken, LedgerNotFound, ProposalClosed
from service.ledger.keys import LedgerKeys
from service.ledger.models import Account, Entry, LedgerGuard, LogHead
from service.populations.models import Population

PROPOSED, EFFECTIVE, REJECTED = "backup.restored", "restore.effective", "restore.rejected"


def propose(session: Session, *, tenant_id: str, actor: str) -> dict[str, Any]:
    """Enters `backup.restored`; nothing moves before two stewards have signed.

    Raises:
        ProposalClosed: the ledger is not halted, or this tenant has a proposal or has
            settled already.
    """
    halted = _halted(session)
    log_id = log_of(session, tenant_id)
    for entry in _of_this_halt(session, log_id, PROPOSED, halted):
        if _state(session, entry) != "rejected":
            raise ProposalClosed(
                proposal_id=json.loads(entry.body)["data"]["restore"], reason="stands already"
            )
    restore_id = new_id("rst_")
    data = {
        "reason": halted.halted_reason,
        "restore": restore_id,
        "rule": "charge_whole",
        "seen_size": halted.seen_size,
    }
    draft = Draft(type=PROPOSED, idem=f"{restore_id}/proposed", actor=actor, data=data)
    receipt = append(session, log_id, draft)
    return to_dict(session, session.get_one(Entry, (receipt.log, receipt.idx)))


def decide(
    session: Session,
    *,
    tenant_id: str,
    restore_id: str,
    approver: str,
    decision: Decision,
    signature: str,
) -> dict[str, Any]:
    """Enters one signed decision; the last needed one spends all.

    Raises:
        LedgerNotFound, NotAllowedToSign, SignatureInvalid, ProposalClosed.
    """
    halted = _halted(session)
    entry = visible(session, tenant_id, restore_id)
    proposal = Receipt(log=entry.log_id, idx=entry.idx, leaf=entry.leaf, ts=entry.ts)
    is_new = approvals.record(
        session,
        proposal_id=restore_id,
        proposal=proposal,
        approver=approver,
        decision=decision,
        signature=signature,
    )
    if is_new:
        if _state(session, entry) != "proposed" or entry.ts < _minute(halted):
            raise ProposalClosed(proposal_id=restore_id, reason="is decided or of another halt")
        kind = "restore.approved" if decision == "approve" else REJECTED
        told = {"proposal": entry.idx, "restore": restore_id, "signature": signature}
        idem = f"{restore_id}/{approver if decision == 'approve' else 'rejected'}"
        append(session, entry.log_id, Draft(type=kind, idem=idem, actor=approver, data=told))
        signed = approvals.approvals_of(session, proposal)
        if decision == "approve" and approvals.enough(signed, entry.actor):
            _spend_all(session, tenant_id, entry, restore_id, signed)
    return to_dict(session, entry)


def _spend_all(
    session: Session, tenant_id: str, entry: Entry, restore_id: str, signed: list[dict[str, Any]]
) -> None:
    told: dict[str, Any] = {"proposal": entry.idx, "restore": restore_id}
    owned = select(Population.id).where(Population.tenant_id == tenant_id).order_by(Population.id)
    for population_id in session.scalars(owned).all():
        movements = _whole(session, population_id)
        accounts.move(session, entry.log_id, population_id, movements)
        draft = Draft(
            type="correction",
            idem=f"{restore_id}/{population_id}",
            actor=SYSTEM,
            population_id=population_id,
            data={**told, "reason": "backup_restored"},
            movements=movements,
        )
        append(session, entry.log_id, draft)
    approved = [
        {"approver": a["approver"], "signature": a["signature"]}
        for a in signed
        if a["decision"] == "approve"
    ]
    draft = Draft(
        type=EFFECTIVE,
        idem=f"{restore_id}/effective",
        actor=SYSTEM,
        data={**told, "approvals": approved},
    )
    append(session, entry.log_id, draft)


def _whole(session: Session, population_id: str) -> list[Movement]:
    """Everything free or held, to spent, block by block."""
    rows = session.scalars(
        select(Account)
        .where(Account.population_id == population_id, Account.kind.in_(("budget", "escrow")))
        .order_by(Account.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    movements, spent = [], dict[str, int]()
    for row in rows:
        movements.append(Movement(account=row.name, amount_pico=-row.balance_pico))
        spent[row.block] = spent.get(row.block, 0) + row.balance_pico
    return movements + [
        Movement(account=name_of(block, "spent"), amount_pico=amount)
        for block, amount in spent.items()
    ]


def _all_settled(session: Session, halted: LedgerGuard) -> bool:
    ledgers = session.scalars(select(LogHead.log_id).where(repository.is_ledger()))
    return all(_of_this_halt(session, log_id, EFFECTIVE, halted) for log_id in ledgers.all())


def is_settled(session: Session) -> bool:
    """The ledger is halted and every ledger's stewards have settled the loss."""
    row = session.get(LedgerGuard, 1, populate_existing=True, with_for_update=True)
    return row is not None and row.halted_reason is not None and _all_settled(session, row)


def lift(session: Session, keys: LedgerKeys) -> None:
    """Ends the halt under a new system log; the witnesses' old one can never be extended.

    Raises:
        LedgerBroken: an invariant does not hold; the halt stays.
    """
    findings = fsck.check_all(session)
    if findings:
        raise LedgerBroken(f"{len(findings)} invariants are broken; rldp ledger fsck lists them.")
    checkpoints.next_system_log(session, keys)
    guard.lift(session)


def visible(session: Session, tenant_id: str, restore_id: str) -> Entry:
    """The proposal of this tenant.

    Raises:
        LedgerNotFound: absent or another tenant's.
    """
    log_id = log_of(session, tenant_id)
    found = session.scalar(
        select(Entry).where(Entry.log_id == log_id, Entry.idem == f"{restore_id}/proposed")
    )
    if found is None or found.type != PROPOSED:
        raise LedgerNotFound("recovery")
    return found


def to_dict(session: Session, entry: Entry) -> dict[str, Any]:
    """The proposal as the API shows it, with what is to be signed."""
    data = json.loads(entry.body)["data"]
    proposal = Receipt(log=entry.log_id, idx=entry.idx, leaf=entry.leaf, ts=entry.ts)
    return {
        "id": data["restore"],
        "object": "ledger.recovery",
        "state": _state(session, entry),
        "reason": data["reason"],
        "rule": data["rule"],
        "seen_size": data["seen_size"],
        "limits": _limits(session, entry.log_id),
        "proposed_by": entry.actor,
        "entry": {**proposal.to_dict(), "origin": approvals.origin_of(session, entry.log_id)},
        "approvals": approvals.approvals_of(session, proposal),
        "ledger": guard.state(session)["state"],
    }


def _limits(session: Session, log_id: str) -> list[dict[str, Any]]:
    """What the books hold: whoever signed a later limit signs it again before approving."""
    tenant_id = session.get_one(LogHead, log_id).tenant_id
    owned = select(Population).where(Population.tenant_id == tenant_id).order_by(Population.id)
    return [
        {"population": one.id, "epsilon": one.epsilon_limit, "delta": one.delta}
        for one in session.scalars(owned)
    ]


def _state(session: Session, entry: Entry) -> str:
    restore_id = json.loads(entry.body)["data"]["restore"]
    for name in ("effective", "rejected"):
        ended = select(Entry.idx).where(
            Entry.log_id == entry.log_id, Entry.idem == f"{restore_id}/{name}"
        )
        if session.scalar(ended) is not None:
            return name
    return "proposed"


def _halted(session: Session) -> LedgerGuard:
    """The guard's row, held until commit: recoveries work one after the other."""
    row = session.get(LedgerGuard, 1, populate_existing=True, with_for_update=True)
    if row is None or row.halted_reason is None:
        raise ProposalClosed(proposal_id="recovery", reason="the ledger is not halted")
    return row


def _minute(halted: LedgerGuard) -> str:
    assert halted.halted_at is not None
    then = datetime.fromtimestamp(halted.halted_at // 60_000_000 * 60, UTC)
    return then.strftime("%Y-%m-%dT%H:%MZ")


def _of_this_halt(session: Session, log_id: str, kind: str, halted: LedgerGuard) -> list[Entry]:
    rows = session.scalars(
        select(Entry)
        .where(Entry.log_id == log_id, Entry.type == kind, Entry.ts >= _minute(halted))
        .order_by(Entry.idx)
    )
    return list(rows)

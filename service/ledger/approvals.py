"""Signed decisions of stewards on proposals (ledger.md 16): who signed what, and is it enough.

The signed text is four lines: `dp-ledger-approval/v1`, the log's origin, the base64 leaf of
the proposal, and `approve` or `reject`. Keys are those registered in the log itself.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.database import now_us
from service.ledger.entries import Receipt
from service.ledger.errors import NotAllowedToSign, ProposalClosed, SignatureInvalid
from service.ledger.models import Approval, Entry, LogHead

Decision = Literal["approve", "reject"]
PEOPLE_MIN = 2
PROPOSAL_DAYS = 14
DAY_US = 24 * 3600 * 1_000_000


def signing_text(*, origin: str, leaf: str, decision: str) -> bytes:
    """The exact bytes a steward signs; `leaf` is hex as everywhere in the API."""
    encoded = base64.b64encode(bytes.fromhex(leaf)).decode()
    return f"dp-ledger-approval/v1\n{origin}\n{encoded}\n{decision}\n".encode()


def has_expired(created_at: int) -> bool:
    return now_us() > created_at + PROPOSAL_DAYS * DAY_US


def proposal_of(session: Session, log_id: str, idx: int) -> Receipt:
    entry = session.get_one(Entry, (log_id, idx))
    return Receipt(log=log_id, idx=idx, leaf=entry.leaf, ts=entry.ts)


def origin_of(session: Session, log_id: str) -> str:
    return session.get_one(LogHead, log_id).origin


def record(
    session: Session,
    *,
    proposal_id: str,
    proposal: Receipt,
    approver: str,
    decision: Decision,
    signature: str,
) -> bool:
    """Checks and stores one decision. False if exactly this decision stands already.

    Raises:
        NotAllowedToSign: the approver has no key in this log.
        SignatureInvalid: the signature does not fit.
        ProposalClosed: the approver decided otherwise before.
    """
    _verify(session, proposal, approver, decision, signature)
    stored = session.get(Approval, (proposal.log, proposal.idx, approver))
    if stored is not None:
        if stored.decision == decision:
            return False
        raise ProposalClosed(proposal_id=proposal_id, reason="you have decided on it before")
    session.add(
        Approval(
            log_id=proposal.log,
            idx=proposal.idx,
            approver=approver,
            decision=decision,
            signature=signature,
            created_at=now_us(),
        )
    )
    session.flush()
    return True


def _verify(
    session: Session, proposal: Receipt, approver: str, decision: str, signature: str
) -> None:
    key = registered_key(session, proposal.log, approver)
    text = signing_text(
        origin=origin_of(session, proposal.log), leaf=proposal.leaf, decision=decision
    )
    try:
        raw = base64.b64decode(signature, validate=True)
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(raw, text)
    except (InvalidSignature, ValueError):
        raise SignatureInvalid from None


def registered_key(session: Session, log_id: str, approver: str) -> str:
    """The steward's public key as the log itself names it, in hex.

    Raises:
        NotAllowedToSign: the log names none.
    """
    body = session.scalar(
        select(Entry.body).where(Entry.log_id == log_id, Entry.idem == f"{approver}/registered")
    )
    if body is None:
        raise NotAllowedToSign(approver=approver)
    key: str = json.loads(body)["data"]["key"]
    return key


def approvals_of(session: Session, proposal: Receipt) -> list[dict[str, Any]]:
    """Decisions so far, oldest first."""
    rows = session.scalars(
        select(Approval)
        .where(Approval.log_id == proposal.log, Approval.idx == proposal.idx)
        .order_by(Approval.created_at, Approval.approver)
    )
    return [
        {"approver": row.approver, "decision": row.decision, "signature": row.signature}
        for row in rows
    ]


def enough(approvals: list[dict[str, Any]], proposed_by: str) -> bool:
    """Signed by the proposer and by at least one other steward."""
    signers = {a["approver"] for a in approvals if a["decision"] == "approve"}
    return proposed_by in signers and len(signers) >= PEOPLE_MIN

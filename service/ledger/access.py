"""Who read what: each read of ledger or personal detail, entered before the answer leaves.

One log per tenant and year, of the same canonical, chained entries as the ledger, signed
and witnessed like it (ledger.md 9.2, 16.5). Holds route templates, roles, outcomes and ids
of objects the caller was shown; never a query, a path or anything else the caller wrote.
If the entry cannot be written, the read fails.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from dp_core.events import canonical_json
from service.ids import new_id
from service.ledger.entries import (
    Draft,
    Receipt,
    append,
    find_receipt,
    open_log,
    this_minute,
)
from service.ledger.models import Entry, LogHead

PREFIX = "access"
OUTCOMES = {401: "denied", 403: "denied", 404: "absent"}


def record(
    session: Session,
    *,
    tenant_id: str,
    actor: str,
    role: str,
    route: str,
    status: int,
    shown: str,
    once_an_hour: bool = False,
) -> Receipt:
    """Enters one read. `shown` is the id of the object in an answer of success, else empty.

    `once_an_hour` is for what a page left open asks for again and again: equal reads of one
    clock hour are one entry.
    """
    log_id = f"{PREFIX}/{tenant_id}/{this_minute()[:4]}"
    data = {
        "object": shown or None,
        "outcome": "allowed" if status < 400 else OUTCOMES.get(status, "refused"),
        "role": role,
        "route": route,
    }
    idem = _hourly(actor, data) if once_an_hour else new_id("acc_")
    draft = Draft(type="access.read", idem=idem, actor=actor, data=data)
    entered = find_receipt(session, log_id, draft) if once_an_hour else None
    if entered is not None:
        return entered
    open_log(session, tenant_id=tenant_id, log_id=log_id)
    return append(session, log_id, draft)


def _hourly(actor: str, data: dict[str, Any]) -> str:
    told = canonical_json({**data, "actor": actor, "hour": this_minute()[:13]})
    return f"acc_{hashlib.sha256(told).hexdigest()[:40]}"


def visible_reads(tenant_id: str) -> Select[Any]:
    """The tenant's access entries, oldest first, over all years."""
    return (
        select(Entry)
        .join(LogHead, LogHead.log_id == Entry.log_id)
        .where(LogHead.log_id.startswith(f"{PREFIX}/{tenant_id}/", autoescape=True))
        .where(Entry.type == "access.read")
        .order_by(Entry.log_id, Entry.idx)
    )


def read_to_dict(entry: Entry) -> dict[str, Any]:
    data = json.loads(entry.body)["data"]
    return {
        "id": f"{entry.log_id}#{entry.idx}",
        "object": "access.read",
        "idx": entry.idx,
        "time": entry.ts,
        "actor": entry.actor,
        "role": data["role"],
        "route": data["route"],
        "shown": data["object"],
        "outcome": data["outcome"],
    }

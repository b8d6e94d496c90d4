"""What a key may do of all that its owner's role may: areas of the API, read or write.

A key without scopes may do everything its role may. A scope never adds to a role.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

Scope = Literal[
    "jobs:read",
    "jobs:write",
    "models:read",
    "files:read",
    "files:write",
    "budgets:read",
    "budgets:write",
    "releases:read",
    "releases:write",
    "ledger:read",
    "ledger:write",
    "webhooks:read",
    "webhooks:write",
    "access:read",
    "access:write",
    "operations:read",
    "operations:write",
]
SCOPES: frozenset[str] = frozenset(get_args(Scope))
# First part of a route below /v1 -> its area. What is not here needs a key without scopes.
AREAS = {
    "fine_tuning": "jobs",
    "models": "models",
    "chat": "models",
    "files": "files",
    "datasets": "files",
    "populations": "budgets",
    "budgets": "budgets",
    "grants": "budgets",
    "releases": "releases",
    "ledger": "ledger",
    "proofs": "ledger",
    "certificates": "ledger",
    "audits": "ledger",
    "webhooks": "webhooks",
    "api_keys": "access",
    "users": "access",
    "tenants": "access",
    "workers": "operations",
    "queue": "operations",
    "operations": "operations",
}
READ_METHODS = frozenset({"GET", "HEAD"})
READING_POSTS = frozenset(
    {"/v1/fine_tuning/jobs/estimate", "/v1/ledger/forecast", "/v1/chat/completions"}
)


def needed(method: str, template: str | None) -> str | None:
    """The scope that a route asks of a scoped key; None if no scope opens it."""
    parts = (template or "").split("/")
    area = AREAS.get(parts[2]) if len(parts) > 2 and parts[1] == "v1" else None
    if area is None:
        return None
    reads = method in READ_METHODS or template in READING_POSTS
    return f"{area}:{'read' if reads else 'write'}"


def covers(scopes: Iterable[str], wanted: str) -> bool:
    """Whether they hold the wanted one; to write an area is to read it too."""
    held = frozenset(scopes)
    return wanted in held or wanted.replace(":read", ":write") in held

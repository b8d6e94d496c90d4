"""Imports every package's tables, so that `Base.metadata` is complete."""

from __future__ import annotations

from sqlalchemy import DDL, event

from service import row_fence
from service.artifacts import models as artifacts
from service.audits import models as audits
from service.auth import models as auth
from service.certificates import models as certificates
from service.database import Base
from service.datasets import models as datasets
from service.fleet import models as fleet
from service.idempotency import models as idempotency
from service.jobs import models as jobs
from service.ledger import models as ledger
from service.operations import models as operations
from service.populations import models as populations
from service.sealing import models as sealing
from service.tenants import models as tenants
from service.webhooks import models as webhooks

metadata = Base.metadata


def _attach_policies() -> None:
    for name in row_fence.BY_TENANT + row_fence.BY_LOG:
        for statement in row_fence.policies_of(name):
            event.listen(
                metadata.tables[name],
                "after_create",
                DDL(statement).execute_if(dialect="postgresql"),  # type: ignore[no-untyped-call]
            )


_attach_policies()

__all__ = [
    "artifacts",
    "audits",
    "auth",
    "certificates",
    "datasets",
    "fleet",
    "idempotency",
    "jobs",
    "ledger",
    "metadata",
    "operations",
    "populations",
    "sealing",
    "tenants",
    "webhooks",
]

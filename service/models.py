"""Imports every package's tables, so that `Base.metadata` is complete."""

from __future__ import annotations

from service.artifacts import models as artifacts
from service.auth import models as auth
from service.certificates import models as certificates
from service.database import Base
from service.datasets import models as datasets
from service.jobs import models as jobs
from service.ledger import models as ledger
from service.populations import models as populations
from service.tenants import models as tenants

metadata = Base.metadata

__all__ = [
    "artifacts",
    "auth",
    "certificates",
    "datasets",
    "jobs",
    "ledger",
    "metadata",
    "populations",
    "tenants",
]

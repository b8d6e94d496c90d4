"""Errors of the audit. Their texts name a field and a remedy, never a score or a coin.

DpCoreError
└── AuditError
    ├── AuditInvalid        an argument or manifest field has an unacceptable value
    └── CommitmentMismatch  seed and manifest do not open the commitment
"""

from __future__ import annotations

from dp_core.errors import DpCoreError


class AuditError(DpCoreError):
    """The audit cannot be made or checked."""


class AuditInvalid(AuditError):
    """An argument or manifest field has an unacceptable value."""

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        self.problem = problem
        super().__init__(f"{field}: {problem}.")


class CommitmentMismatch(AuditError):
    """Seed and manifest do not open the commitment of the ledger."""

    def __init__(self) -> None:
        super().__init__(
            "Seed and manifest do not open the commitment in the ledger: the audit is void. "
            "Check that both belong to this job and attempt."
        )

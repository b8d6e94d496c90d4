"""Table of populations: the owners of privacy budgets."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from service.database import Base


class Population(Base):
    """The patients of a family of datasets.

    `alpha_star`, `delta` and the limit are null until the first effective grant; order,
    delta, unit, relation and blocks never change after it (I13). `patients_public` is a
    declared lower bound, never a count. `split_key` is the secret key of the train and
    validation split (privacy.md S6); only workers read it.
    """

    __tablename__ = "population"
    __table_args__ = (
        CheckConstraint("unit IN ('patient', 'record')", name="unit"),
        CheckConstraint("relation = 'add_remove'", name="relation"),
        CheckConstraint("patients_public >= 2", name="patients_public"),
        CheckConstraint("alpha_star IS NULL OR alpha_star BETWEEN 2 AND 64", name="order"),
        CheckConstraint("limit_pico IS NULL OR limit_pico > 0", name="limit_pico"),
        CheckConstraint(
            "(alpha_star IS NULL) = (limit_pico IS NULL) AND (delta IS NULL) = (limit_pico IS NULL)"
            " AND (epsilon_limit IS NULL) = (limit_pico IS NULL)",
            name="granted_together",
        ),
        Index("uq_population_tenant_id_code", "tenant_id", "code", unique=True),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), index=True)
    code: Mapped[str] = mapped_column(String(64))
    unit: Mapped[str] = mapped_column(String(16))
    relation: Mapped[str] = mapped_column(String(16))
    patients_public: Mapped[int] = mapped_column(BigInteger)
    patients_public_basis: Mapped[str] = mapped_column(String(32))
    validation_fraction: Mapped[str] = mapped_column(String(32))
    overlap_with: Mapped[str | None] = mapped_column(Text)  # canonical JSON list; null: unstated
    alpha_star: Mapped[int | None]
    delta: Mapped[str | None] = mapped_column(String(32))
    epsilon_limit: Mapped[str | None] = mapped_column(String(32))
    limit_pico: Mapped[int | None] = mapped_column(BigInteger)  # of each block
    frozen: Mapped[bool] = mapped_column(default=False)
    split_key: Mapped[bytes] = mapped_column(LargeBinary)
    created_by: Mapped[str] = mapped_column(ForeignKey("principal.id"))
    created_at: Mapped[int] = mapped_column(BigInteger)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Disjoint sets of patients with accounts of their own (ledger.md 3.8)."""
        held_out = any(digit in "123456789" for digit in self.validation_fraction.split("e")[0])
        return ("train", "validation") if held_out else ("train",)

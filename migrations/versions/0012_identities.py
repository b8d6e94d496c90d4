"""People of an identity provider, and people who are blocked. Adds a table and a column.

Revision: 0012.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("principal", sa.Column("blocked_at", sa.BigInteger(), nullable=True))
    op.create_table(
        "identity",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("principal_id", sa.String(length=40), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["principal_id"], ["principal.id"], name=op.f("fk_identity_principal_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_identity")),
    )
    op.create_index(op.f("ix_identity_principal_id"), "identity", ["principal_id"], unique=False)


def downgrade() -> None:
    raise RuntimeError("A ledger has no way back; restore a backup instead.")

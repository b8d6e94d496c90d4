"""People are invited by their admin and accept with a token. Adds one table.

Like people and keys it has no fence: a token is looked up before anybody knows whose it is.

Revision: 0015.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

TABLE = "invitation"


def upgrade() -> None:
    op.create_table(
        TABLE,
        sa.Column("principal_id", sa.String(length=40), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("invited_by", sa.String(length=40), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("accepted_at", sa.BigInteger(), nullable=True),
        sa.Column("key_id", sa.String(length=40), nullable=True),
        sa.Column("possession", sa.String(length=88), nullable=True),
        sa.Column("admitted_at", sa.BigInteger(), nullable=True),
        sa.Column("withdrawn_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["invited_by"], ["principal.id"], name=op.f("fk_invitation_invited_by")
        ),
        sa.ForeignKeyConstraint(["key_id"], ["api_key.id"], name=op.f("fk_invitation_key_id")),
        sa.ForeignKeyConstraint(
            ["principal_id"], ["principal.id"], name=op.f("fk_invitation_principal_id")
        ),
        sa.PrimaryKeyConstraint("principal_id", name=op.f("pk_invitation")),
    )


def downgrade() -> None:
    raise RuntimeError("A ledger has no way back; restore a backup instead.")

"""Who has acknowledged which alert, until its cause is over. Adds one table, with its fence.

Revision: 0014.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

TABLE = "alert_acknowledgement"
STANDS = sa.text("ended_at IS NULL")
IS_OWN = "coalesce(current_setting('app.tenant', true), '') IN ('', '*', tenant_id)"


def upgrade() -> None:
    op.create_table(
        TABLE,
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("alert_id", sa.String(length=40), nullable=False),
        sa.Column("code", sa.String(length=40), nullable=False),
        sa.Column("subject", sa.String(length=80), nullable=False),
        sa.Column("degree", sa.Integer(), nullable=False),
        sa.Column("acknowledged_by", sa.String(length=40), nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["acknowledged_by"],
            ["principal.id"],
            name=op.f("fk_alert_acknowledgement_acknowledged_by"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenant.id"], name=op.f("fk_alert_acknowledgement_tenant_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alert_acknowledgement")),
    )
    op.create_index(
        "uq_alert_acknowledgement_stands",
        TABLE,
        ["tenant_id", "alert_id"],
        unique=True,
        sqlite_where=STANDS,
        postgresql_where=STANDS,
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"ALTER TABLE {TABLE} ENABLE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY tenant ON {TABLE} USING ({IS_OWN}) WITH CHECK ({IS_OWN})")


def downgrade() -> None:
    raise RuntimeError("A ledger has no way back; restore a backup instead.")

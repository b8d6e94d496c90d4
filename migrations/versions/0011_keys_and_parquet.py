"""Keys of stored files, for hospitals and under them; uploads may be Parquet. Adds two tables.

Revision: 0011.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations.sqlite_schema import edit_table

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

BEFORE, AFTER = "kind IN ('jsonl', 'csv')", "kind IN ('jsonl', 'csv', 'parquet')"


def upgrade() -> None:
    op.create_table(
        "tenant_key",
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("master_id", sa.String(length=16), nullable=False),
        sa.Column("wrapped", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("destroyed_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "(wrapped IS NULL) = (destroyed_at IS NOT NULL)", name=op.f("ck_tenant_key_destroyed")
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_tenant_key_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_tenant_key")),
    )
    op.create_table(
        "data_key",
        sa.Column("owner_id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("wrapped", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenant_key.tenant_id"], name=op.f("fk_data_key_tenant_id")
        ),
        sa.PrimaryKeyConstraint("owner_id", name=op.f("pk_data_key")),
    )
    op.create_index("ix_data_key_tenant_id", "data_key", ["tenant_id"])
    if op.get_bind().dialect.name == "sqlite":
        edit_table("file", ((BEFORE, AFTER),))
        return
    op.drop_constraint(op.f("ck_file_kind"), "file", type_="check")
    op.create_check_constraint(op.f("ck_file_kind"), "file", AFTER)


def downgrade() -> None:
    raise RuntimeError("A ledger has no way back; restore a backup instead.")

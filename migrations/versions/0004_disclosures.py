"""Personal values that entries commit to, encrypted, with their keys in a table apart.

Adds tables only; no entry is touched.

Revision: 0004.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "disclosure",
        sa.Column("log_id", sa.String(length=64), nullable=False),
        sa.Column("idx", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("path", sa.String(length=40), nullable=False),
        sa.Column("salt", sa.String(length=32), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["log_id", "idx"],
            ["entry.log_id", "entry.idx"],
            name=op.f("fk_disclosure_log_id_idx"),
        ),
        sa.PrimaryKeyConstraint("log_id", "idx", "path", name=op.f("pk_disclosure")),
    )
    op.create_table(
        "disclosure_key",
        sa.Column("log_id", sa.String(length=64), nullable=False),
        sa.Column("idx", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("path", sa.String(length=40), nullable=False),
        sa.Column("wrapped", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["log_id", "idx", "path"],
            ["disclosure.log_id", "disclosure.idx", "disclosure.path"],
            name=op.f("fk_disclosure_key_log_id_idx_path"),
        ),
        sa.PrimaryKeyConstraint("log_id", "idx", "path", name=op.f("pk_disclosure_key")),
    )


def downgrade() -> None:
    raise RuntimeError("A ledger has no way back; restore a backup instead.")

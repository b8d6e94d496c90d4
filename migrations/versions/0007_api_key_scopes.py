"""Scopes of API keys. Adds a table; keys without rows in it stay as they were.

Revision: 0007.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_key_scope",
        sa.Column("key_id", sa.String(length=40), nullable=False),
        sa.Column("scope", sa.String(length=24), nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["api_key.id"], name=op.f("fk_api_key_scope_key_id")),
        sa.PrimaryKeyConstraint("key_id", "scope", name=op.f("pk_api_key_scope")),
    )


def downgrade() -> None:
    raise RuntimeError("A ledger has no way back; restore a backup instead.")

"""A balance costs the same however long its history is: folded tallies, indexes of what is open.

Jobs settled before this revision stay unfolded: their figure is still summed from their own
rows, which is right, and as fast as it was.

Revision: 0008.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

ACCOUNT_IN_USE = sa.text("(balance_pico <> 0 OR kind <> 'escrow')")
TALLY_OPEN = sa.text("folded = 0")


def upgrade() -> None:
    op.create_table(
        "spend_curve",
        sa.Column("population_id", sa.String(length=40), nullable=False),
        sa.Column("block", sa.String(length=16), nullable=False),
        sa.Column("sums", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["population_id"], ["population.id"], name=op.f("fk_spend_curve_population_id")
        ),
        sa.PrimaryKeyConstraint("population_id", "block", name=op.f("pk_spend_curve")),
    )
    op.add_column(
        "spend_tally", sa.Column("folded", sa.Integer(), server_default="0", nullable=False)
    )
    op.drop_index("ix_spend_tally_population_id_block", table_name="spend_tally")
    op.create_index(
        "ix_spend_tally_open",
        "spend_tally",
        ["population_id", "block"],
        sqlite_where=TALLY_OPEN,
        postgresql_where=TALLY_OPEN,
    )
    op.create_index(
        "ix_account_population_id_in_use",
        "account",
        ["population_id"],
        sqlite_where=ACCOUNT_IN_USE,
        postgresql_where=ACCOUNT_IN_USE,
    )


def downgrade() -> None:
    raise RuntimeError("A ledger has no way back; restore a backup instead.")

"""Jobs can be paused: two more states, attempts ended by a pause, and since when a state holds.

On SQLite the table's text is edited (`migrations/sqlite_schema.py`): a wider CHECK, and NOT
NULL for columns that every row has by then.

Revision: 0005.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations.sqlite_schema import edit_table

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

BEFORE = (
    "state IN ('budget_stopped', 'cancelled', 'cancelling', 'failed', 'queued', 'recovering', "
    "'running', 'starting', 'succeeded')"
)
AFTER = (
    "state IN ('budget_stopped', 'cancelled', 'cancelling', 'failed', 'paused', 'pausing', "
    "'queued', 'recovering', 'running', 'starting', 'succeeded')"
)
NOT_NULL = (
    "finished_at BIGINT, pauses INTEGER, state_at BIGINT,",
    "finished_at BIGINT, \n\tpauses INTEGER NOT NULL, \n\tstate_at BIGINT NOT NULL,",
)


def upgrade() -> None:
    op.add_column("job", sa.Column("pauses", sa.Integer(), nullable=True))
    op.add_column("job", sa.Column("state_at", sa.BigInteger(), nullable=True))
    op.execute(
        "UPDATE job SET pauses = 0, "
        "state_at = COALESCE(finished_at, CASE WHEN started_at IS NULL THEN created_at "
        "ELSE progress_at END)"
    )
    if op.get_bind().dialect.name == "sqlite":
        edit_table("job", ((BEFORE, AFTER), NOT_NULL))
        return
    op.alter_column("job", "pauses", nullable=False)
    op.alter_column("job", "state_at", nullable=False)
    op.drop_constraint(op.f("ck_job_state"), "job", type_="check")
    op.create_check_constraint(op.f("ck_job_state"), "job", AFTER)


def downgrade() -> None:
    raise RuntimeError("A ledger has no way back; restore a backup instead.")

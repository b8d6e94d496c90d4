"""Evidence: tiles of the tree, signed checkpoints, cosignatures, and the guard's one row.

Adds tables only; no entry is touched.

Revision: 0002.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

APPEND_ONLY = ("tile", "checkpoint")


def upgrade() -> None:
    _tile()
    _checkpoint()
    _cosignature()
    _guard()
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    for table in APPEND_ONLY:
        for statement in _sqlite(table) if is_sqlite else _postgresql(table):
            op.execute(statement)


def downgrade() -> None:
    raise RuntimeError("A ledger has no way back; restore a backup instead.")


def _sqlite(table: str) -> list[str]:
    return [
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        for verb in ("UPDATE", "DELETE")
    ]


def _postgresql(table: str) -> list[str]:
    return [
        f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE ON {table} "
        "FOR EACH ROW EXECUTE FUNCTION refuse_change()",
        f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()",
    ]


def _tile() -> None:
    op.create_table(
        "tile",
        sa.Column("log_id", sa.String(length=64), nullable=False),
        sa.Column("level", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hashes", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["log_id"], ["log_head.log_id"], name=op.f("fk_tile_log_id")),
        sa.PrimaryKeyConstraint("log_id", "level", "number", name=op.f("pk_tile")),
    )


def _checkpoint() -> None:
    op.create_table(
        "checkpoint",
        sa.Column("log_id", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("root", sa.String(length=64), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("system_idx", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("size > 0", name=op.f("ck_checkpoint_size")),
        sa.ForeignKeyConstraint(["log_id"], ["log_head.log_id"], name=op.f("fk_checkpoint_log_id")),
        sa.PrimaryKeyConstraint("log_id", "size", name=op.f("pk_checkpoint")),
    )


def _cosignature() -> None:
    op.create_table(
        "cosignature",
        sa.Column("log_id", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("witness", sa.String(length=255), nullable=False),
        sa.Column("line", sa.Text(), nullable=False),
        sa.Column("signed_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["log_id", "size"],
            ["checkpoint.log_id", "checkpoint.size"],
            name=op.f("fk_cosignature_log_id_size"),
        ),
        sa.PrimaryKeyConstraint("log_id", "size", "witness", name=op.f("pk_cosignature")),
    )


def _guard() -> None:
    op.create_table(
        "ledger_guard",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("quorum", sa.Integer(), nullable=False),
        sa.Column("quorum_at", sa.BigInteger(), nullable=False),
        sa.Column("quorum_size", sa.BigInteger(), nullable=True),
        sa.Column("halted_reason", sa.String(length=40), nullable=True),
        sa.Column("halted_at", sa.BigInteger(), nullable=True),
        sa.Column("seen_size", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("id = 1", name=op.f("ck_ledger_guard_one_row")),
        sa.CheckConstraint(
            "(halted_reason IS NULL) = (halted_at IS NULL)", name=op.f("ck_ledger_guard_halted")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_guard")),
    )

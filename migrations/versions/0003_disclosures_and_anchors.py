"""Personal values that entries commit to, with their keys apart; time stamps of checkpoints.

Adds tables only; no entry is touched.

Revision: 0003.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _disclosures()
    op.create_table(
        "anchor",
        sa.Column("log_id", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["log_id", "size"],
            ["checkpoint.log_id", "checkpoint.size"],
            name=op.f("fk_anchor_log_id_size"),
        ),
        sa.PrimaryKeyConstraint("log_id", "size", name=op.f("pk_anchor")),
    )
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    for statement in _sqlite("anchor") if is_sqlite else _postgresql("anchor"):
        op.execute(statement)


def _disclosures() -> None:
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


def downgrade() -> None:
    raise RuntimeError("A ledger has no way back; restore a backup instead.")

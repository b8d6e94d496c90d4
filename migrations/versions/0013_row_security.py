"""Row-level security on PostgreSQL: a request sees its own hospital's rows. SQLite has none.

A connection that never sets `app.tenant` sees everything, as processes of the release before
do while they are replaced. Changes no row.

Revision: 0013.
"""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

BY_TENANT = (
    "artifact",
    "budget_grant",
    "certificate",
    "data_key",
    "dataset",
    "dataset_version",
    "file",
    "idempotency_key",
    "job",
    "job_audit",
    "log_head",
    "natural_key",
    "population",
    "release_request",
    "reservation",
    "tenant_key",
    "webhook_endpoint",
)
BY_LOG = ("approval", "disclosure", "disclosure_key", "entry", "posting")
HELD = "coalesce(current_setting('app.tenant', true), '')"
LOG_PARTS = "split_part(log_id, '/', 1), split_part(log_id, '/', 2)"


def pieces() -> list[str]:
    """The fence of one table each: a busy service never has all of them idle at once."""
    system = "'system'"
    return [
        *(_fence(table, "tenant_id", f"tenant_id = {system}") for table in BY_TENANT),
        *(_fence(table, LOG_PARTS, f"split_part(log_id, '/', 1) = {system}") for table in BY_LOG),
    ]


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for piece in pieces():
        op.execute(piece)


def _fence(table: str, owners: str, is_system: str) -> str:
    """Looks first, since a table that has its fence needs no lock."""
    is_own = f"{HELD} IN ('', '*', {owners})"
    made = [
        f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        f"CREATE POLICY tenant ON {table} USING ({is_own}) WITH CHECK ({is_own})",
    ]
    if table in ("entry", "log_head", "posting"):
        made.append(f"CREATE POLICY system_log ON {table} FOR SELECT USING ({is_system})")
    return f"""
        DO $$ BEGIN
        IF NOT (SELECT relrowsecurity FROM pg_class WHERE oid = '{table}'::regclass) THEN
            {"; ".join(made)};
        END IF; END $$
    """


def downgrade() -> None:
    raise RuntimeError("A ledger has no way back; restore a backup instead.")

"""Changes of a SQLite table's text where no stored row changes.

SQLite cannot widen a CHECK; making the table anew would need foreign keys switched off
outside the transaction. So the text in the schema is edited, SQLite's own procedure for a
change that touches no stored row ("Making Other Kinds Of Table Schema Changes", ALTER TABLE).
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op


def edit_table(table: str, changes: tuple[tuple[str, str], ...]) -> None:
    """Replaces each text, which must stand exactly once, and has SQLite check the result.

    Raises:
        RuntimeError: another table than the migration knows, or SQLite finds it broken.
    """
    bind = op.get_bind()
    row = f"type = 'table' AND name = '{table}'"
    sql = str(bind.execute(sa.text(f"SELECT sql FROM sqlite_master WHERE {row}")).scalar_one())
    for before, after in changes:
        if sql.count(before) != 1:
            raise RuntimeError(f"The {table} table is not the one this migration knows.")
        sql = sql.replace(before, after)
    version = int(bind.execute(sa.text("PRAGMA schema_version")).scalar_one())
    bind.execute(sa.text("PRAGMA writable_schema=ON"))
    bind.execute(sa.text(f"UPDATE sqlite_master SET sql = :sql WHERE {row}"), {"sql": sql})
    bind.execute(sa.text(f"PRAGMA schema_version={version + 1}"))
    bind.execute(sa.text("PRAGMA writable_schema=OFF"))
    for pragma in ("integrity_check", "foreign_key_check"):
        found = bind.execute(sa.text(f"PRAGMA {pragma}")).fetchall()
        if [one[0] for one in found] not in ([], ["ok"]):
            raise RuntimeError(f"The database does not pass SQLite's {pragma}.")

"""Runs migrations on the connection that `service.migrate` hands over."""

from __future__ import annotations

from alembic import context

from service.models import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    compare_type=True,
    transactional_ddl=True,  # SQLite can; all or nothing on both databases
)
with context.begin_transaction():
    context.run_migrations()

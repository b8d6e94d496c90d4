"""A PostgreSQL database as production has it: the service's role owns no table."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text

import service.models
from service.database import Database
from tests.service.ledger.world import postgres_url


@contextmanager
def fenced_database() -> Iterator[Database]:
    """A fresh schema, used under a role to which row-level security applies."""
    role = f"r_{uuid.uuid4().hex}"
    with postgres_url() as url:
        owner, used = Database(url), Database(f"{url}%20-crole%3D{role}")
        with owner.transaction() as session:
            service.models.metadata.create_all(session.connection())
            session.execute(text(f"CREATE ROLE {role} NOLOGIN"))
            schema = session.scalar(text("SELECT current_schema()"))
            for grant in (
                f"GRANT USAGE ON SCHEMA {schema} TO {role}",
                f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}",
                f"GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {role}",
            ):
                session.execute(text(grant))
        try:
            yield used
        finally:
            used.dispose()
            with owner.transaction() as session:
                session.execute(text(f"DROP OWNED BY {role}"))
                session.execute(text(f"DROP ROLE {role}"))
            owner.dispose()

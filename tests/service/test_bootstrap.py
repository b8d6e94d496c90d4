"""First start: one hospital, secrets shown once, private keys only in files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from service.auth.keys import authenticate
from service.bootstrap import Bootstrapped, SigningKeyUnusable, bootstrap
from service.database import Database
from service.models import metadata
from service.settings import Settings
from service.tenants.models import Principal, Tenant
from tests.service.ledger.world import postgres_database, sqlite_database


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    opened = sqlite_database(tmp_path) if request.param == "sqlite" else postgres_database()
    with opened as database:
        yield database


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


def first_start(db: Database, settings: Settings) -> Bootstrapped:
    made = bootstrap(db, settings)
    assert made is not None
    return made


def stewards(db: Database) -> list[str | None]:
    with db.reading() as session:
        found = session.query(Principal).filter_by(role="steward").order_by(Principal.created_at)
        return [steward.public_key for steward in found]


def public_hex(path: Path) -> str:
    key = load_pem_private_key(path.read_bytes(), password=None)
    assert isinstance(key, Ed25519PrivateKey)
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


class TestFirstStart:
    def test_makes_a_person_of_each_role_and_a_second_steward(
        self, db: Database, settings: Settings
    ) -> None:
        made = first_start(db, settings)
        assert [person.name for person in made.principals] == [
            "admin",
            "submitter",
            "steward-1",
            "steward-2",
            "auditor",
        ]
        for person in made.principals:
            owner = authenticate(db, made.key_of(person.name))
            assert owner is not None
            assert (owner.role, owner.tenant_id) == (person.role, made.tenant_id)
            assert person.key not in repr(made)

    def test_registers_the_public_half_of_each_signing_key(
        self, db: Database, settings: Settings
    ) -> None:
        made = first_start(db, settings)
        paths = [p.signing_key_path for p in made.principals if p.signing_key_path]
        assert [path.name for path in paths] == ["steward-1.pem", "steward-2.pem"]
        assert sorted(public_hex(path) for path in paths) == sorted(map(str, stewards(db)))
        for path in paths:
            assert path.stat().st_mode & 0o777 == 0o600
        assert settings.keys_dir.stat().st_mode & 0o777 == 0o700

    def test_happens_once(self, db: Database, settings: Settings) -> None:
        first_start(db, settings)
        before = stewards(db)
        assert bootstrap(db, settings) is None
        with db.reading() as session:
            assert session.query(Tenant).count() == 1
        assert stewards(db) == before


class TestSigningKeyFiles:
    def test_of_a_start_that_broke_are_used_again(self, tmp_path: Path, settings: Settings) -> None:
        with sqlite_database(tmp_path) as db:
            first = first_start(db, settings)
            with db.transaction() as session:  # as if the first start had never committed
                for table in reversed(metadata.sorted_tables):
                    if table.name in {"api_key", "principal", "tenant"}:
                        session.execute(table.delete())
            again = first_start(db, settings)
            assert again.tenant_id != first.tenant_id
            paths = [p.signing_key_path for p in again.principals if p.signing_key_path]
            assert sorted(public_hex(p) for p in paths) == sorted(map(str, stewards(db)))

    def test_that_hold_something_else_stop_the_start_untouched(
        self, tmp_path: Path, settings: Settings
    ) -> None:
        settings.keys_dir.mkdir(parents=True)
        path = settings.keys_dir / "steward-2.pem"
        path.write_text("another key")
        with sqlite_database(tmp_path) as db:
            with pytest.raises(SigningKeyUnusable):
                bootstrap(db, settings)
            with db.reading() as session:
                assert session.query(Tenant).count() == 0
        assert path.read_text() == "another key"

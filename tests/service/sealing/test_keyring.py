"""Keys in the database: who wraps whom, what a rotation changes, what an erasure takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.database import Database
from service.sealing import keyring
from service.sealing.errors import KeyDestroyed, KeyUnavailable, SealBroken
from service.sealing.files import FileKey, StoredFile, write_sealed
from service.sealing.keyring import Keyring
from service.sealing.master import KEY_FILE, RETIRED_FILE, MasterKeys
from service.sealing.models import DataKey, TenantKey
from service.settings import Settings
from tests.service.hospital import Hospital, open_hospital
from tests.service.ledger.world import postgres_database


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hospital]:
    if request.param == "sqlite":
        with open_hospital(tmp_path) as opened:
            yield opened
    else:
        with postgres_database() as database, open_hospital(tmp_path, database) as opened:
            yield opened


def tenant(hospital: Hospital) -> str:
    return hospital.people["steward"].tenant_id


def other_tenant(hospital: Hospital) -> str:
    return hospital.others["steward"].tenant_id


def kept(hospital: Hospital, owner: str, tenant_id: str | None = None) -> bytes:
    key = keyring.new_key()
    with hospital.database.transaction() as session:
        Keyring.of(hospital.settings).keep(session, tenant_id or tenant(hospital), owner, key)
    return key


def found(hospital: Hospital, owner: str) -> bytes | None:
    with hospital.database.reading() as session:
        return Keyring.of(hospital.settings).find(session, owner)


def rows(database: Database) -> dict[str, tuple[str | None, str]]:
    with database.reading() as session:
        return {r.tenant_id: (r.wrapped, r.master_id) for r in session.query(TenantKey)}


class TestKeys:
    def test_come_back_and_lie_wrapped(self, either: Hospital) -> None:
        key = kept(either, "dsv_1")
        assert found(either, "dsv_1") == key
        assert found(either, "dsv_2") is None
        with either.database.reading() as session:
            stored = session.get_one(DataKey, "dsv_1").wrapped
        assert key.hex() not in stored and len(stored) == 80

    def test_of_one_hospital_share_its_key_and_no_other_hospitals(self, either: Hospital) -> None:
        for owner in ("dsv_1", "dsv_2"):
            kept(either, owner)
        kept(either, "dsv_3", other_tenant(either))
        assert set(rows(either.database)) == {tenant(either), other_tenant(either)}

    def test_moved_to_another_row_open_nothing(self, either: Hospital) -> None:
        kept(either, "dsv_1")
        kept(either, "dsv_2")
        with either.database.transaction() as session:
            session.get_one(DataKey, "dsv_1").wrapped = session.get_one(DataKey, "dsv_2").wrapped
        with pytest.raises(KeyUnavailable):
            found(either, "dsv_1")

    def test_need_a_data_key_in_production(self, hospital: Hospital) -> None:
        strict = Keyring(MasterKeys(hospital.settings.keys_dir, make=False))
        with pytest.raises(KeyUnavailable), hospital.database.transaction() as session:
            strict.keep(session, tenant(hospital), "dsv_1", keyring.new_key())
        assert not (hospital.settings.keys_dir / KEY_FILE).exists()

    def test_the_data_key_is_closed_to_others(self, hospital: Hospital) -> None:
        kept(hospital, "dsv_1")
        assert (hospital.settings.keys_dir / KEY_FILE).stat().st_mode & 0o777 == 0o600


class TestRotation:
    def test_rewraps_hospitals_and_touches_no_file(self, either: Hospital) -> None:
        key = kept(either, "dsv_1")
        before = rows(either.database)
        masters = MasterKeys.of(either.settings)
        masters.replace()
        assert found(either, "dsv_1") == key, "readable between the steps"
        with either.database.transaction() as session:
            assert Keyring.of(either.settings).rewrap(session) == 1
        after = rows(either.database)
        assert {m for _, m in after.values()} == {masters.present().id}
        assert after != before and found(either, "dsv_1") == key
        masters.forget_retired()
        assert found(either, "dsv_1") == key
        with either.database.transaction() as session:
            assert Keyring.of(either.settings).rewrap(session) == 0

    def test_a_key_forgotten_too_early_is_named_and_can_be_put_back(
        self, hospital: Hospital
    ) -> None:
        key = kept(hospital, "dsv_1")
        folder = hospital.settings.keys_dir
        MasterKeys.of(hospital.settings).replace()
        retired = (folder / RETIRED_FILE).read_text()
        (folder / RETIRED_FILE).unlink()
        (wrapped_by,) = {master for _, master in rows(hospital.database).values()}
        with pytest.raises(KeyUnavailable, match=wrapped_by):
            found(hospital, "dsv_1")
        (folder / RETIRED_FILE).write_text(retired)
        assert found(hospital, "dsv_1") == key

    @pytest.mark.parametrize("content", ["", "ab" * 31, "no key\n"])
    def test_a_file_that_holds_no_key_is_refused(self, tmp_path: Path, content: str) -> None:
        (tmp_path / KEY_FILE).write_text(content)
        with pytest.raises(KeyUnavailable):
            MasterKeys(tmp_path, make=True).present()
        assert (tmp_path / KEY_FILE).read_text() == content


class TestErasure:
    def test_of_a_file_leaves_its_ciphertext_unreadable(
        self, either: Hospital, tmp_path: Path
    ) -> None:
        secret = kept(either, "dsv_1")
        kept(either, "dsv_2")
        aside = tmp_path / "backup"
        write_sealed(aside, b"note", FileKey(owner_id="dsv_1", label="rows", secret=secret))
        with either.database.transaction() as session:
            keyring.destroy(session, "dsv_1")
        assert found(either, "dsv_1") is None and found(either, "dsv_2") is not None
        with pytest.raises(KeyDestroyed):
            StoredFile(path=aside, key=None).open()
        other = found(either, "dsv_2")
        assert other is not None
        with pytest.raises(SealBroken):
            StoredFile(path=aside, key=FileKey(owner_id="dsv_1", label="rows", secret=other)).open()

    def test_of_a_hospital_takes_every_key_and_lets_no_new_one_in(self, either: Hospital) -> None:
        for owner in ("dsv_1", "ftjob-1"):
            kept(either, owner)
        foreign = kept(either, "dsv_3", other_tenant(either))
        for expected in (2, 0):
            with either.database.transaction() as session:
                assert keyring.destroy_tenant(session, tenant(either)) == expected
        assert found(either, "dsv_1") is None and found(either, "ftjob-1") is None
        assert rows(either.database)[tenant(either)][0] is None
        with pytest.raises(KeyDestroyed):
            kept(either, "dsv_4")
        assert found(either, "dsv_3") == foreign

    def test_of_a_hospital_that_never_stored_anything_holds_as_well(self, either: Hospital) -> None:
        with either.database.transaction() as session:
            keyring.destroy_tenant(session, tenant(either))
        with pytest.raises(KeyDestroyed):
            kept(either, "dsv_1")

    def test_wipes_the_wrapped_key_from_the_database_file(self, hospital: Hospital) -> None:
        """SQLite: what is deleted is overwritten once its log is folded in."""
        kept(hospital, "dsv_1")
        with hospital.database.reading() as session:
            wrapped = session.get_one(DataKey, "dsv_1").wrapped.encode()
        with hospital.database.transaction() as session:
            keyring.destroy(session, "dsv_1")
        with hospital.database.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        files = hospital.settings.data_dir.glob("service.db*")
        assert not [f.name for f in files if wrapped in f.read_bytes()]


def test_the_settings_name_the_folder(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, keys_folder=tmp_path / "mounted")
    MasterKeys.of(settings).present()
    assert (tmp_path / "mounted" / KEY_FILE).exists()

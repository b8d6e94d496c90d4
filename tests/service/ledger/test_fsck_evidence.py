"""fsck compares what lies beside the entries with what the log says of it (I15-I17)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text
from typer.testing import CliRunner

from service.cli import app
from service.database import Database
from service.ledger import anchors, disclosures, fsck, grants, notes, rotation
from service.ledger.disclosures import Vault
from service.ledger.keys import adopt_next_log_key, next_log_key
from service.ledger.models import SignedCheckpoint
from service.ledger.publisher import make_publisher
from service.ledger.watch import Watch
from service.settings import Settings
from tests.deploy.test_verify_anchors import OPENSSL, Authority
from tests.service.ledger import world as w

TRIGGERS = ("entry", "checkpoint", "anchor")
STAMPED = pytest.mark.skipif(OPENSSL is None, reason="no openssl for a local authority")


@dataclass
class House:
    """A ledger whose guards an owner of the file has removed."""

    world: w.World
    settings: Settings
    authority: Authority | None
    stranger: Authority | None
    kept: int = 0  # the entry whose justification stands
    erased: int = 0  # the entry whose justification was redacted

    @property
    def vault(self) -> Vault:
        return Vault(self.settings.keys_dir, make=False)

    def change(self, statement: str, **values: object) -> None:
        with self.world.db.transaction() as session:
            changed = session.execute(text(statement), values)
            assert changed.rowcount > 0, "the test changed nothing"  # type: ignore[attr-defined]

    def problems(self) -> set[tuple[str, str]]:
        pinned = () if self.authority is None else (self.authority.folder / "ca.pem",)
        certificates = [c for path in pinned for c in anchors.read_certificates(path)]
        with self.world.db.reading() as session:
            found = fsck.check_all(session, vault=self.vault, certificates=certificates)
        return {(one.invariant, one.problem) for one in found}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two disclosures, one of them redacted; a key change; two time stamps. Built once."""
    folder = tmp_path_factory.mktemp("house")
    settings = Settings(data_dir=folder)
    with w.sqlite_database(folder) as db:
        world = w.open_world(db)
        publisher = make_publisher(settings, db)
        if OPENSSL is not None:
            tsa = Authority(folder / "tsa")
            Authority(folder / "stranger")
            pinned = anchors.read_certificates(folder / "tsa" / "ca.pem")
            publisher.tsa = anchors.Tsa(url="http://tsa.example", certificates=pinned)
            publisher.ask_tsa = tsa.ask
        publisher.turn()
        for number in (9, 10):
            propose(world, str(number), settings)
        with db.transaction() as session:
            disclosures.redact(
                session,
                tenant_id=world.tenant,
                actor=world.proposer,
                log_id=places(db)[1][0],
                idx=places(db)[1][1],
                path="justification",
                ground="entered_in_error",
            )
        with db.transaction() as session:
            new = next_log_key(settings, make=True)
            rotation.enter_log_key(session, publisher.keys, new)
        adopt_next_log_key(settings)
        w.publish(world, w.run_job(world, run_plan=w.plan(mode="adaptive_sigma")))
        publisher.turn()
        with db.transaction() as session:
            for name in TRIGGERS:
                session.execute(text(f"DROP TRIGGER {name}_no_update"))
        with db.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    (folder / "tenant").write_text(world.tenant)
    return folder


def propose(world: w.World, epsilon: str, settings: Settings) -> None:
    request = grants.GrantRequest(
        population_id=world.population,
        epsilon=epsilon,
        delta=None,
        alpha_star=None,
        reason_code="study_extension",
        justification=f"Because of {epsilon}.",
    )
    with world.db.transaction() as session:
        grants.propose(
            session,
            tenant_id=world.tenant,
            actor=world.proposer,
            request=request,
            vault=Vault(settings.keys_dir, make=True),
        )


def places(db: Database) -> list[tuple[str, int]]:
    """Where entries with commitments stand, oldest first."""
    query = "SELECT log_id, idx FROM entry WHERE body LIKE '%\"disclosed\"%' ORDER BY idx"
    with db.reading() as session:
        return [(log, idx) for log, idx in session.execute(text(query))]


@pytest.fixture
def house(built: Path, tmp_path: Path) -> Iterator[House]:
    """A copy of its own for each test."""
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    db = Database(f"sqlite:///{tmp_path / 'ledger.db'}")
    world = w.World(
        db=db,
        tenant=(tmp_path / "tenant").read_text(),
        stewards={},
        submitter="",
        auditor="",
        admin="",
    )
    made = House(
        world=world,
        settings=Settings(data_dir=tmp_path, database_url=db.url),
        authority=None if OPENSSL is None else existing(tmp_path / "tsa"),
        stranger=None if OPENSSL is None else existing(tmp_path / "stranger"),
    )
    made.kept, made.erased = (idx for _, idx in places(db))
    yield made
    db.dispose()


def existing(folder: Path) -> Authority:
    made = Authority.__new__(Authority)
    made.folder, made.is_down, made.calls = folder, False, 0
    return made


def test_a_clean_ledger_has_no_findings(house: House) -> None:
    assert house.problems() == set()


class TestDisclosures:
    @pytest.mark.parametrize(
        ("statement", "problem"),
        [
            ("UPDATE disclosure SET salt = '00' || substr(salt, 3)", "not what its entry"),
            ("UPDATE disclosure SET value = 'AAAA' || substr(value, 5)", "cannot be opened"),
            ("UPDATE disclosure_key SET wrapped = 'AAAA' || substr(wrapped, 5)", "cannot be"),
            ("DELETE FROM disclosure_key; DELETE FROM disclosure", "erased without a redaction"),
            (
                "INSERT INTO disclosure SELECT log_id, {erased}, path, salt, value FROM disclosure",
                "disclosed after its redaction",
            ),
            (
                "INSERT INTO disclosure SELECT log_id, 3, path, salt, value FROM disclosure",
                "a disclosure that no entry commits to",
            ),
        ],
    )
    def test_each_change_is_found(self, house: House, statement: str, problem: str) -> None:
        for part in statement.format(erased=house.erased).split("; "):
            house.change(part)
        assert [(i, p.startswith(problem)) for i, p in house.problems()] == [("I15", True)]

    def test_a_value_whose_key_was_left_out_of_a_backup_is_lost_and_not_changed(
        self, house: House
    ) -> None:
        house.change("DELETE FROM disclosure_key")
        assert house.problems() == set()


class TestKeys:
    def test_a_checkpoint_signed_by_the_key_that_was_rotated_out(self, house: House) -> None:
        with house.world.db.reading() as session:
            rows = session.query(SignedCheckpoint).order_by(SignedCheckpoint.size).all()
            last = next(r for r in reversed(rows) if r.log_id.startswith(house.world.tenant))
        other = notes.sign(
            notes.parse_note(last.note).text,
            f"rldp.local/{last.log_id}",
            Ed25519PrivateKey.generate(),
        )
        house.change(
            "UPDATE checkpoint SET note = :note WHERE log_id = :log AND size = :size",
            note=other.full,
            log=last.log_id,
            size=last.size,
        )
        assert house.problems() == {("I16", "a checkpoint not signed by the key of its size")}

    @pytest.mark.parametrize("name", ["authority_signature", "new_signature"])
    def test_a_change_that_a_key_has_not_signed(self, house: House, name: str) -> None:
        house.change(
            f'UPDATE entry SET body = replace(body, \'"{name}":"\', \'"{name}":"AAAA\')'
            " WHERE type = 'key.rotated' AND log_id LIKE 'tn%'"
        )
        found = {problem for invariant, problem in house.problems() if invariant == "I16"}
        assert found == {f"the {name.partition('_')[0]} key has not signed the change"}

    def test_a_key_vouched_for_by_one_that_was_rotated_out(self, house: House) -> None:
        """The holder of the first key certifies an own receipt key after the change."""
        thief = Ed25519PrivateKey.generate()
        with house.world.db.transaction() as session:
            log = next(log for log, _ in places(house.world.db))
            stolen = make_publisher(house.settings, house.world.db).keys.followed_by(thief)
            rotation._enter(session, log, stolen, role="receipt", old=None, new=thief)
        assert ("I16", "vouched for by a key that was rotated out") in house.problems()

    def test_a_change_that_one_log_alone_was_told_of(self, house: House) -> None:
        publisher = make_publisher(house.settings, house.world.db)
        with house.world.db.transaction() as session:
            log = next(log for log, _ in places(house.world.db))
            new = Ed25519PrivateKey.generate()
            old = publisher.keys.log_public
            rotation._enter(session, log, publisher.keys, role="log", old=old, new=new)
        assert ("I16", "its keys are not those of the other logs") in house.problems()


@STAMPED
class TestTimeStamps:
    def test_a_stamp_moved_to_another_checkpoint(self, house: House) -> None:
        house.change(
            "UPDATE anchor SET token = (SELECT token FROM anchor ORDER BY size DESC LIMIT 1)"
        )
        problem = "the time stamp is over something else than its checkpoint"
        assert house.problems() == {("I17", problem)}

    def test_a_stamp_of_an_authority_nobody_pinned(self, house: House) -> None:
        assert house.stranger is not None
        house.authority = house.stranger
        assert house.problems() == {("I17", "a time stamp that does not verify")}

    def test_a_stamp_that_is_none(self, house: House) -> None:
        house.change("UPDATE anchor SET token = 'AAAA'")
        assert house.problems() == {("I17", "a time stamp that does not verify")}

    def test_an_entry_younger_than_the_stamp_over_it(self, house: House) -> None:
        house.change("UPDATE entry SET ts = '2099-01-01T00:00Z' WHERE log_id LIKE 'tn%'")
        problem = "an entry is younger than the time stamp over it"
        assert ("I17", problem) in house.problems()


def test_the_watch_finds_it_at_the_next_start_and_halts(house: House) -> None:
    house.change("DELETE FROM disclosure_key")
    house.change("DELETE FROM disclosure")
    assert Watch(db=house.world.db).turn() == 1
    with house.world.db.reading() as session:
        reason = session.scalar(text("SELECT halted_reason FROM ledger_guard"))
    assert reason == "invariant:I15"


def test_the_command_lists_what_it_finds(house: House) -> None:
    folder = str(house.settings.data_dir)
    environment = {"RLDP_DATABASE_URL": house.world.db.url}
    told = CliRunner().invoke(app, ["ledger", "fsck", "--data-dir", folder], env=environment)
    assert (told.exit_code, told.stdout) == (0, "Every invariant holds.\n"), told.output
    house.change("UPDATE disclosure SET salt = '00' || substr(salt, 3)")
    told = CliRunner().invoke(app, ["ledger", "fsck", "--data-dir", folder], env=environment)
    assert told.exit_code == 1
    assert "I15" in told.stdout and "not what its entry commits to" in told.stdout

"""Cosignatures arrive; a shorter, other or unwatched log takes nothing new (P14, ledger.md 19)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select, text, update

from service.database import Database
from service.ids import new_id
from service.ledger import checkpoints, guard, notes
from service.ledger import service as ledger
from service.ledger import witnesses as clients
from service.ledger.errors import LedgerHalted, LogShrunk
from service.ledger.keys import load_keys
from service.ledger.models import LedgerGuard
from service.ledger.publisher import Publisher, make_publisher
from service.ledger.witnesses import Witness, WitnessFileInvalid, WitnessUnreachable, load_witnesses
from service.settings import Settings
from tests.service.ledger import world as w
from tests.service.ledger.backups import Scene, reserve, restore_old_backup
from tests.service.ledger.street import open_street


@pytest.fixture
def scene(world: w.World, tmp_path: Path) -> Scene:
    keys = load_keys(Settings(data_dir=tmp_path))
    street = open_street(tmp_path / "street", keys)

    def make() -> Publisher:
        return Publisher(
            db=world.db,
            keys=keys,
            witnesses=street.clients(),
            quorum=2,
            folder=tmp_path / "memory",
            post=street.post,
        )

    return Scene(world, street, make(), make)


def newest_note(db: Database) -> notes.Note:
    with db.reading() as session:
        system = checkpoints.system_log(session)
        assert system is not None
        found = checkpoints.newest(session, system)
        assert found is not None
        return notes.parse_note(checkpoints.full_note(session, found))


def age_quorum(db: Database, seconds: int) -> None:
    with db.transaction() as session:
        session.execute(
            update(LedgerGuard).values(quorum_at=LedgerGuard.quorum_at - seconds * 1_000_000)
        )


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
class TestCosignatures:
    def test_both_witnesses_sign_and_their_lines_stand_under_the_note(self, scene: Scene) -> None:
        scene.publisher.turn()
        note = newest_note(scene.world.db)
        for server in scene.street.servers.values():
            assert notes.cosigned_at(note.text, note.signatures, server.verifier_key) is not None

    def test_a_growing_log_is_signed_again_with_proofs(self, scene: Scene) -> None:
        for _ in range(3):
            scene.publisher.turn()
            reserve(scene.world)
        scene.publisher.turn()
        assert len(newest_note(scene.world.db).signatures) == 3

    def test_nothing_new_asks_nobody_until_five_minutes_have_gone(self, scene: Scene) -> None:
        scene.publisher.turn()
        asked = scene.street.calls
        scene.publisher.turn()
        assert scene.street.calls == asked
        with scene.world.db.transaction() as session:
            session.execute(text("UPDATE cosignature SET signed_at = signed_at - 301"))
        scene.publisher.turn()
        assert scene.street.calls == asked + 2

    def test_a_witness_that_was_down_catches_up(self, scene: Scene) -> None:
        scene.publisher.turn()
        scene.street.down.add("w1")
        reserve(scene.world)
        scene.publisher.turn()
        assert len(newest_note(scene.world.db).signatures) == 2
        scene.street.down.clear()
        scene.publisher.turn()
        assert len(newest_note(scene.world.db).signatures) == 3

    def test_a_publisher_without_the_rows_of_old_cosignatures_learns_the_size(
        self, scene: Scene
    ) -> None:
        scene.publisher.turn()
        with scene.world.db.transaction() as session:
            session.execute(text("DELETE FROM cosignature"))
        reserve(scene.world)
        scene.make().turn()
        assert len(newest_note(scene.world.db).signatures) == 3


class TestTwoPublishers:
    """API processes and dispatcher publish beside each other: to be overtaken halts nothing."""

    def overtaken(self, scene: Scene, times: int = 1) -> Publisher:
        """A publisher before whose question to a witness another one signs more, and brings it."""
        left = [times]

        def post(url: str, body: bytes) -> tuple[int, str]:
            if left[0]:
                left[0] -= 1
                reserve(scene.world)
                scene.make().turn()
            return scene.street.post(url, body)

        made = scene.make()
        made.post = post
        return made

    def test_one_that_was_overtaken_brings_the_later_checkpoint(self, scene: Scene) -> None:
        scene.publisher.turn()
        reserve(scene.world)
        self.overtaken(scene).turn()
        with scene.world.db.reading() as session:
            assert guard.state(session)["state"] == "open"
        assert len(newest_note(scene.world.db).signatures) == 3, "log and both witnesses"

    def test_one_that_is_overtaken_for_ever_leaves_it_to_the_others(self, scene: Scene) -> None:
        scene.publisher.turn()
        reserve(scene.world)
        self.overtaken(scene, times=100).turn()
        with scene.world.db.reading() as session:
            assert guard.state(session)["state"] == "open"

    def test_a_witness_that_knows_more_than_the_database_still_halts(self, scene: Scene) -> None:
        scene.publisher.turn()
        reserve(scene.world)
        asked: list[str] = []

        def knows_more(url: str, body: bytes) -> tuple[int, str]:
            asked.append(url)
            return 409, "999999\n"

        publisher = scene.make()
        publisher.post = knows_more
        with pytest.raises(LogShrunk):
            publisher.turn()
        assert len(asked) == 1
        with scene.world.db.reading() as session:
            assert guard.state(session)["state"] == "halted"


class TestStaleWitnesses:
    def test_after_an_hour_nothing_new_is_reserved_but_running_jobs_go_on(
        self, scene: Scene
    ) -> None:
        scene.publisher.turn()
        job = reserve(scene.world)
        scene.street.down = {"w1"}
        age_quorum(scene.world.db, 3601)
        scene.publisher.turn()
        with pytest.raises(LedgerHalted, match="no new reservation") as refused:
            reserve(scene.world)
        assert refused.value.reason == "witness_stale"
        with scene.world.db.transaction() as session:
            w.start(session, job)
            ledger.charge_window(session, job_id=job, epoch=1, charge=w.window(0))

    def test_the_quorum_coming_back_opens_again(self, scene: Scene) -> None:
        scene.publisher.turn()
        age_quorum(scene.world.db, 3601)
        reserve_is_refused(scene.world)
        reserve_later = scene.world
        with scene.world.db.transaction() as session:
            session.execute(text("UPDATE cosignature SET signed_at = signed_at - 301"))
        scene.publisher.turn()
        assert reserve(reserve_later)

    def test_within_the_hour_reservations_go_on(self, scene: Scene) -> None:
        scene.street.down = {"w1", "w2"}
        scene.publisher.turn()
        age_quorum(scene.world.db, 3500)
        assert reserve(scene.world)

    def test_a_repeated_reservation_gets_its_receipt_all_the_same(self, scene: Scene) -> None:
        scene.publisher.turn()
        job = new_id("ftjob-")
        with scene.world.db.transaction() as session:
            first = w.reserve(session, scene.world, job=job)
        age_quorum(scene.world.db, 3601)
        with scene.world.db.transaction() as session:
            assert w.reserve(session, scene.world, job=job) == first


def reserve_is_refused(world: w.World) -> LedgerHalted:
    with pytest.raises(LedgerHalted) as refused:
        reserve(world)
    return refused.value


class TestRollback:
    """The rows of an old backup are put back."""

    @pytest.fixture
    def restored(self, tmp_path: Path) -> Iterator[tuple[Scene, int]]:
        with w.sqlite_database(tmp_path) as db:
            yield restore_old_backup(tmp_path, db), 0

    def test_the_file_beside_the_database_halts_it(self, restored: tuple[Scene, int]) -> None:
        scene, _ = restored
        scene.street.down = {"w1", "w2"}
        with pytest.raises(LogShrunk):
            scene.publisher.turn()
        assert reserve_is_refused(scene.world).reason == "log_shrunk"

    def test_without_that_file_a_witness_halts_it(
        self, restored: tuple[Scene, int], tmp_path: Path
    ) -> None:
        scene, _ = restored
        shutil.rmtree(tmp_path / "memory")
        with pytest.raises(LogShrunk) as broken:
            scene.publisher.turn()
        assert broken.value.seen_size > broken.value.size
        assert reserve_is_refused(scene.world).reason == "log_shrunk"

    def test_a_halted_ledger_charges_nothing_and_stays_halted(
        self, restored: tuple[Scene, int], tmp_path: Path
    ) -> None:
        scene, _ = restored
        shutil.rmtree(tmp_path / "memory")
        job = reserve(scene.world)  # before anybody looked
        with scene.world.db.transaction() as session:
            w.start(session, job)
        with pytest.raises(LogShrunk):
            scene.publisher.turn()
        with pytest.raises(LedgerHalted), scene.world.db.transaction() as session:
            ledger.charge_window(session, job_id=job, epoch=1, charge=w.window(0))
        with pytest.raises(LogShrunk):
            scene.make().turn()
        with scene.world.db.reading() as session:
            assert guard.state(session)["state"] == "halted"


class TestSplitView:
    def test_a_log_made_anew_with_the_same_key_is_halted(self, tmp_path: Path) -> None:
        keys = load_keys(Settings(data_dir=tmp_path))
        street = open_street(tmp_path / "street", keys)
        for name in ("first", "second"):
            folder = tmp_path / name
            folder.mkdir()
            with w.sqlite_database(folder) as db:
                world = w.open_world(db)
                publisher = Publisher(
                    db=db,
                    keys=keys,
                    witnesses=street.clients(),
                    quorum=2,
                    folder=folder / "memory",
                    post=street.post,
                )
                if name == "first":
                    publisher.turn()
                    continue
                with pytest.raises(LogShrunk):
                    publisher.turn()
                assert reserve_is_refused(world).reason == "log_shrunk"


class TestClient:
    def cosign(self, answers: list[tuple[int, str]]) -> Any:
        key = Ed25519PrivateKey.generate()
        witness = Witness(key=notes.public_key("w", notes.COSIGNER_KEY, key), url="http://w")
        checkpoint = notes.Checkpoint(origin="o", size=9, root="0" * 64)
        left = iter(answers)
        return clients.cosign(
            witness,
            log_id="o",
            checkpoint=checkpoint,
            note=notes.sign(checkpoint.text, "o", key).full,
            known_size=4,
            prove=lambda old, size: [],
            post=lambda url, body: next(left),
        )

    @pytest.mark.parametrize(
        "answers", [[(409, "12\n")], [(422, "")], [(409, "9\n"), (409, "9\n")], [(409, "4\n")]]
    )
    def test_contradictions_halt(self, answers: list[tuple[int, str]]) -> None:
        with pytest.raises(LogShrunk):
            self.cosign(answers)

    @pytest.mark.parametrize(
        "answers",
        [
            [(500, "")],
            [(404, "")],
            [(403, "")],
            [(302, "")],
            [(409, "many")],
            [(200, "")],
            [(200, "— w AAAAAAAA\n")],
            [(409, "5\n"), (409, "6\n"), (409, "7\n")],
        ],
    )
    def test_other_answers_only_leave_the_cosignature_out(
        self, answers: list[tuple[int, str]]
    ) -> None:
        with pytest.raises(WitnessUnreachable):
            self.cosign(answers)


class TestWitnessFile:
    def test_reads_keys_and_addresses(self, tmp_path: Path) -> None:
        key = notes.public_key("w/1", notes.COSIGNER_KEY, Ed25519PrivateKey.generate())
        path = tmp_path / "witnesses"
        path.write_text(f"# outside the house\n\n{key.text} https://w.example/\n")
        assert load_witnesses(path) == (Witness(key=key, url="https://w.example"),)
        assert load_witnesses(None) == ()

    @pytest.mark.parametrize("line", ["nonsense", "{vkey}", "{vkey} ftp://x", "{log} https://x"])
    def test_names_the_bad_line(self, tmp_path: Path, line: str) -> None:
        key = Ed25519PrivateKey.generate()
        path = tmp_path / "witnesses"
        path.write_text(
            line.format(
                vkey=notes.public_key("w", notes.COSIGNER_KEY, key).text,
                log=notes.public_key("w", notes.LOG_KEY, key).text,
            )
        )
        with pytest.raises(WitnessFileInvalid, match="line 1"):
            load_witnesses(path)

    def test_one_witness_does_not_count_twice(self, tmp_path: Path) -> None:
        key = notes.public_key("w", notes.COSIGNER_KEY, Ed25519PrivateKey.generate())
        path = tmp_path / "witnesses"
        path.write_text(f"{key.text} https://a\n{key.text} https://b\n")
        with pytest.raises(WitnessFileInvalid, match="twice"):
            load_witnesses(path)


def test_a_deployment_without_witnesses_signs_and_stays_open(
    world: w.World, tmp_path: Path
) -> None:
    publisher = make_publisher(Settings(data_dir=tmp_path), world.db)
    assert publisher.turn() == 1
    assert reserve(world)
    with world.db.reading() as session:
        assert guard.state(session)["state"] == "open"
        assert session.scalars(select(LedgerGuard.quorum)).one() == 0

"""Checkpoints strictly grow, extend each other, and stand in the system log (ledger.md 9, 10)."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import pytest
from sqlalchemy import event, func, insert, select, text
from sqlalchemy.exc import DatabaseError

from service.database import Database
from service.ledger import checkpoints, fsck, merkle, notes, tiles
from service.ledger.entries import SYSTEM, Draft, append
from service.ledger.errors import LogShrunk
from service.ledger.keys import LedgerKeys, load_keys
from service.ledger.models import Entry, LogHead, SignedCheckpoint, TreeTile
from service.settings import Settings
from tests.service.ledger import world as w


@pytest.fixture
def keys(tmp_path: Path) -> LedgerKeys:
    return load_keys(Settings(data_dir=tmp_path))


def ledger_of(world: w.World) -> str:
    with world.db.reading() as session:
        return session.scalars(
            select(LogHead.log_id).where(LogHead.tenant_id == world.tenant)
        ).one()


def publish(db: Database, keys: LedgerKeys) -> list[str]:
    with db.transaction() as session:
        return checkpoints.publish(session, keys)


def note_some(world: w.World, count: int, name: str = "x") -> None:
    """Appends entries without postings."""
    log = ledger_of(world)
    with world.db.transaction() as session:
        for number in range(count):
            draft = Draft(type="reserve.refused", idem=f"{name}/{number}", actor=SYSTEM, data={})
            append(session, log, draft)


class TestPublish:
    def test_signs_what_the_entries_say_and_enters_it_in_the_system_log(
        self, world: w.World, keys: LedgerKeys
    ) -> None:
        log = ledger_of(world)
        assert publish(world.db, keys) == [log]
        with world.db.reading() as session:
            made = checkpoints.newest(session, log)
            assert made is not None
            leaves = session.scalars(
                select(Entry.leaf).where(Entry.log_id == log).order_by(Entry.idx)
            ).all()
            note = notes.parse_note(made.note)
            told = notes.parse_checkpoint(note.text)
            assert (told.size, told.root) == (len(leaves), merkle.root_of_leaves(leaves))
            key = notes.public_key(told.origin, notes.LOG_KEY, keys.log)
            assert notes.is_signed_by(note, key)
            system = checkpoints.system_log(session)
            assert system is not None
            body = session.get_one(Entry, (system, made.system_idx)).body
            assert json.loads(body)["data"] == {"log": log, "root": told.root, "size": told.size}
            above = checkpoints.newest(session, system)
            assert above is not None and above.size == (made.system_idx or 0) + 1

    def test_nothing_new_signs_nothing(self, world: w.World, keys: LedgerKeys) -> None:
        publish(world.db, keys)
        assert publish(world.db, keys) == []
        with world.db.reading() as session:
            assert session.scalar(select(func.count()).select_from(SignedCheckpoint)) == 2

    def test_sizes_grow_and_each_extends_the_one_before(
        self, world: w.World, keys: LedgerKeys
    ) -> None:
        log = ledger_of(world)
        for step in range(4):
            note_some(world, step + 1, name=str(step))
            publish(world.db, keys)
        with world.db.reading() as session:
            read = tiles.node_reader(session, log)
            signed = session.scalars(
                select(SignedCheckpoint)
                .where(SignedCheckpoint.log_id == log)
                .order_by(SignedCheckpoint.size)
            ).all()
            assert len(signed) == 4
            for before, after in itertools.pairwise(signed):
                path = merkle.consistency_path(before.size, after.size, read)
                assert merkle.extends(
                    old=before.size,
                    old_root=before.root,
                    size=after.size,
                    root=after.root,
                    path=path,
                )
            assert fsck.check_all(session) == []

    def test_a_second_root_for_one_size_finds_no_place(
        self, world: w.World, keys: LedgerKeys
    ) -> None:
        publish(world.db, keys)
        with world.db.reading() as session:
            made = session.scalars(select(SignedCheckpoint)).first()
        assert made is not None
        row = {"log_id": made.log_id, "size": made.size, "note": "", "created_at": 0}
        with pytest.raises(DatabaseError), world.db.transaction() as session:
            session.execute(insert(SignedCheckpoint).values(root="0" * 64, **row))
        for statement in ("UPDATE checkpoint SET root = 'x'", "DELETE FROM checkpoint"):
            with (
                pytest.raises(DatabaseError, match="append-only"),
                world.db.transaction() as session,
            ):
                session.execute(text(statement))

    def test_a_rewritten_or_shortened_log_is_not_signed(
        self, world: w.World, keys: LedgerKeys
    ) -> None:
        publish(world.db, keys)
        log = ledger_of(world)
        with world.db.transaction() as session:  # the head lies; the entries stand
            session.execute(
                text("UPDATE log_head SET size = size - 1 WHERE log_id = :log"), {"log": log}
            )
        with pytest.raises(LogShrunk, match="does not extend"):
            publish(world.db, keys)
        with world.db.transaction() as session:
            session.execute(
                text("UPDATE log_head SET size = size + 1, frontier = :f WHERE log_id = :log"),
                {"log": log, "f": hashlib.sha256().hexdigest()},
            )
        with pytest.raises(LogShrunk):
            publish(world.db, keys)


class TestTiles:
    @pytest.mark.parametrize("db", ["postgresql"], indirect=True)
    def test_proofs_from_tiles_equal_proofs_from_leaves(
        self, world: w.World, keys: LedgerKeys
    ) -> None:
        note_some(world, 600)
        publish(world.db, keys)
        log = ledger_of(world)
        with world.db.reading() as session:
            assert session.scalar(select(func.count()).select_from(TreeTile)) == 2
            leaves = list(
                session.scalars(select(Entry.leaf).where(Entry.log_id == log).order_by(Entry.idx))
            )
            from_tiles = tiles.node_reader(session, log)
            from_leaves = merkle.reader_of(leaves)
            size = len(leaves)
            for index in (0, 1, 255, 256, 511, 512, size - 1):
                assert merkle.inclusion_path(index, size, from_tiles) == merkle.inclusion_path(
                    index, size, from_leaves
                )
            for old in (1, 255, 256, 257, 512, 600, size):
                assert merkle.consistency_path(old, size, from_tiles) == merkle.consistency_path(
                    old, size, from_leaves
                )
            assert fsck.check_all(session) == []

    def test_two_levels_fold_to_the_root(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With tiles of 4 hashes, 70 entries fill three levels."""
        monkeypatch.setattr(tiles, "LEVEL_HEIGHT", 2)
        monkeypatch.setattr(tiles, "WIDTH", 4)
        with w.sqlite_database(tmp_path) as db:
            world = w.found(db)
            w.add_population(world)
            note_some(world, 70)
            log = ledger_of(world)
            with db.transaction() as session:
                head = checkpoints.head_of(session, log)
                tiles.fill(session, log, head.size)
                assert tiles.fill(session, log, head.size) == 0
                levels = set(session.scalars(select(TreeTile.level)))
                assert levels == {0, 1, 2}
                assert merkle.root_at(head.size, tiles.node_reader(session, log)) == head.root

    def test_a_proof_costs_the_same_while_a_tile_above_fills(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With tiles of 16 hashes: 31 entries are one full tile, 255 are fifteen."""
        monkeypatch.setattr(tiles, "LEVEL_HEIGHT", 4)
        monkeypatch.setattr(tiles, "WIDTH", 16)
        with w.sqlite_database(tmp_path) as db:
            world = w.found(db)
            w.add_population(world)
            log = ledger_of(world)
            costs = []
            for size in (31, 255):
                with world.db.reading() as session:
                    missing = size - checkpoints.head_of(session, log).size
                note_some(world, missing, f"to-{size}")
                with db.transaction() as session:
                    tiles.fill(session, log, size)
                costs.append(self.cost_of_a_proof(db, log, size, monkeypatch))
        (hashes, questions), (later_hashes, later_questions) = costs
        assert later_hashes - hashes <= 16, "roots are folded, not the tiles under them"
        assert later_questions - questions <= 2, "is there a tile above, and which roots are below"

    @staticmethod
    def cost_of_a_proof(
        db: Database, log: str, size: int, monkeypatch: pytest.MonkeyPatch
    ) -> tuple[int, int]:
        """Hashes computed and questions asked of the database for the proof of entry 0."""
        counts, plain = {"hashes": 0, "questions": 0}, merkle.node

        def counted(left: str, right: str) -> str:
            counts["hashes"] += 1
            return plain(left, right)

        def asked(*_: object) -> None:
            counts["questions"] += 1

        with monkeypatch.context() as patched, db.reading() as session:
            patched.setattr(merkle, "node", counted)
            event.listen(db.engine, "before_cursor_execute", asked)
            path = merkle.inclusion_path(0, size, tiles.node_reader(session, log))
            event.remove(db.engine, "before_cursor_execute", asked)
        assert len(path) == (size - 1).bit_length()
        return counts["hashes"], counts["questions"]

    def test_tiles_of_an_older_release_are_read_without_their_root(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tiles, "LEVEL_HEIGHT", 2)
        monkeypatch.setattr(tiles, "WIDTH", 4)
        with w.sqlite_database(tmp_path) as db:
            world = w.found(db)
            w.add_population(world)
            note_some(world, 40)
            log = ledger_of(world)
            with db.transaction() as session:
                head = checkpoints.head_of(session, log)
                tiles.fill(session, log, head.size)
                rows = session.execute(select(TreeTile.level, TreeTile.number, TreeTile.hashes))
                kept = [
                    {"log_id": log, "level": row.level, "number": row.number,
                     "hashes": row.hashes[: 4 * 64]}
                    for row in rows
                ]  # fmt: skip
            with db.transaction() as session:
                session.execute(text("DROP TABLE tile"))
                TreeTile.__table__.create(session.connection())  # type: ignore[attr-defined]
                session.execute(insert(TreeTile), kept)
            with db.reading() as session:
                assert merkle.root_at(head.size, tiles.node_reader(session, log)) == head.root
                assert fsck.check_all(session) == []


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
class TestFsck:
    def test_a_checkpoint_that_differs_from_the_entries_is_found(
        self, world: w.World, keys: LedgerKeys
    ) -> None:
        log = ledger_of(world)
        rows = [(3, "0" * 64), (10_000, "1" * 64)]
        with world.db.transaction() as session:
            for size, root in rows:
                row = {"log_id": log, "size": size, "root": root, "note": "", "created_at": 0}
                session.execute(insert(SignedCheckpoint).values(row))
        with world.db.reading() as session:
            found = {(f.invariant, f.problem) for f in fsck.check_all(session)}
        assert ("I10", "the checkpoint of this size has another root") in found
        assert ("I10", "the log is shorter than a checkpoint of it") in found

    @pytest.mark.parametrize("wrong", ["hashes", "root"])
    def test_a_tile_that_differs_from_the_entries_is_found(
        self, world: w.World, wrong: str
    ) -> None:
        note_some(world, 260)
        log = ledger_of(world)
        with world.db.transaction() as session:
            first = select(Entry.leaf).where(Entry.log_id == log, Entry.idx < tiles.WIDTH)
            leaves = "".join(session.scalars(first.order_by(Entry.idx)))
            hashes = "0" * len(leaves) if wrong == "hashes" else leaves + "0" * 64
            row = {"log_id": log, "level": 0, "number": 0, "hashes": hashes}
            session.execute(insert(TreeTile).values(row))
        with world.db.reading() as session:
            assert "tile 0/0 differs" in {f.problem for f in fsck.check_all(session)}


class TestKeys:
    def test_are_made_once_with_closed_files(self, tmp_path: Path) -> None:
        settings = Settings(data_dir=tmp_path)
        first, second = load_keys(settings), load_keys(settings)
        assert (first.log_public, first.receipt_public) == (
            second.log_public,
            second.receipt_public,
        )
        assert first.log_public != first.receipt_public
        for path in settings.keys_dir.iterdir():
            assert path.stat().st_mode & 0o777 == 0o600
        assert "Ed25519" not in repr(first)

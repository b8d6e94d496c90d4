"""The witness signs only what extends all it signed, over restarts (c2sp.org/tlog-witness)."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from service.ledger import merkle, notes
from service.witness.server import Answer, Witness, make_app

LOG_KEY = Ed25519PrivateKey.from_private_bytes(b"l" * 32)
WITNESS_KEY = Ed25519PrivateKey.from_private_bytes(b"w" * 32)
ORIGIN = "rldp.local/system/x"


def leaves(count: int, name: str = "a") -> list[str]:
    return [hashlib.sha256(f"{name}{n}".encode()).hexdigest() for n in range(count)]


class Log:
    """A log whose whole tree the test knows."""

    def __init__(self, hashes: list[str], key: Ed25519PrivateKey = LOG_KEY) -> None:
        self.hashes, self.key = hashes, key
        self.read = merkle.reader_of(hashes)

    def note(self, size: int, origin: str = ORIGIN) -> str:
        root = merkle.root_at(size, self.read)
        checkpoint = notes.Checkpoint(origin=origin, size=size, root=root)
        return notes.sign(checkpoint.text, origin, self.key).full

    def request(self, old: int, size: int, *, origin: str = ORIGIN) -> bytes:
        path = merkle.consistency_path(old, size, self.read) if old <= size else []
        lines = [f"old {old}", *map(notes.encode_hash, path), "", self.note(size, origin)]
        return "\n".join(lines).encode()


LOG = Log(leaves(40))
FORK = Log([*leaves(5), *leaves(35, "b")])


def open_witness(folder: Path, now: int = 1_700_000_000) -> Witness:
    return Witness(
        name="witness.example/w1",
        key=WITNESS_KEY,
        logs=[notes.public_key(ORIGIN, notes.LOG_KEY, LOG_KEY)],
        folder=folder,
        clock=lambda: now,
    )


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    return open_witness(tmp_path)


class TestCosigning:
    def test_a_growing_log_is_cosigned_with_the_time(self, witness: Witness) -> None:
        for old, size in ((0, 3), (3, 17), (17, 17), (17, 40)):
            answer = witness.add_checkpoint(LOG.request(old, size))
            assert answer.status == 200
            text = notes.parse_note(LOG.note(size)).text
            lines = notes.parse_signatures(answer.text)
            assert notes.cosigned_at(text, lines, witness.verifier_key) == 1_700_000_000

    def test_it_remembers_over_a_restart(self, witness: Witness, tmp_path: Path) -> None:
        assert witness.add_checkpoint(LOG.request(0, 20)).status == 200
        again = open_witness(tmp_path)
        assert again.add_checkpoint(LOG.request(0, 10)) == conflict(20)
        assert again.add_checkpoint(LOG.request(20, 21)).status == 200


def conflict(size: int) -> Answer:
    return Answer(status=409, text=f"{size}\n", media_type="text/x.tlog.size")


class TestRefusals:
    def test_a_shorter_log_is_told_what_was_seen(self, witness: Witness) -> None:
        witness.add_checkpoint(LOG.request(0, 20))
        assert witness.add_checkpoint(LOG.request(10, 12)) == conflict(20)
        assert witness.add_checkpoint(LOG.request(20, 12)).status == 400

    def test_another_root_at_the_same_size_is_a_conflict(self, witness: Witness) -> None:
        witness.add_checkpoint(LOG.request(0, 20))
        assert witness.add_checkpoint(FORK.request(20, 20)) == conflict(20)

    def test_a_fork_is_not_consistent(self, witness: Witness) -> None:
        witness.add_checkpoint(LOG.request(0, 20))
        assert witness.add_checkpoint(FORK.request(20, 30)).status == 422

    def test_an_unknown_log_and_a_strange_key_are_refused(self, witness: Witness) -> None:
        assert witness.add_checkpoint(LOG.request(0, 3, origin="other")).status == 404
        stranger = Log(leaves(9), Ed25519PrivateKey.generate())
        assert witness.add_checkpoint(stranger.request(0, 3)).status == 403

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"old 1",
            b"old x\n\n" + LOG.note(3).encode(),
            b"old 01\n\n" + LOG.note(3).encode(),
            b"old 0\nnot base64\n\n" + LOG.note(3).encode(),
            b"old 0\n" + b"A" * 43 + b"=\n" * 64 + b"\n" + LOG.note(3).encode(),
            b"old 0\n\nno note",
            b"\xff\xfe",
        ],
    )
    def test_what_cannot_be_read_is_400(self, witness: Witness, body: bytes) -> None:
        assert witness.add_checkpoint(body).status == 400

    def test_a_refusal_changes_nothing(self, witness: Witness, tmp_path: Path) -> None:
        witness.add_checkpoint(LOG.request(0, 20))
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        for request in (FORK.request(20, 30), FORK.request(20, 20), LOG.request(0, 40)):
            assert witness.add_checkpoint(request).status != 200
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


class TestNeverTwoHistories:
    @settings(deadline=None, max_examples=40)
    @given(
        moves=st.lists(
            st.tuples(st.sampled_from([LOG, FORK]), st.integers(0, 40), st.integers(1, 40)),
            max_size=12,
        )
    )
    def test_all_it_ever_cosigned_is_one_log(
        self, tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[Log, int, int]]
    ) -> None:
        witness = open_witness(tmp_path_factory.mktemp("w"))
        signed: list[tuple[Log, int]] = []
        for log, old, size in moves:
            if witness.add_checkpoint(log.request(old, size)).status == 200:
                signed.append((log, size))
        sizes = [size for _, size in signed]
        assert sizes == sorted(sizes)
        roots = {size: merkle.root_at(size, log.read) for log, size in signed}
        beyond = {log for log, size in signed if size > 5}
        assert len(beyond) <= 1
        assert all(merkle.root_at(s, log.read) == roots[s] for log, s in signed)

    def test_of_two_forks_at_once_one_wins(self, tmp_path: Path) -> None:
        for round_ in range(10):
            folder = tmp_path / str(round_)
            folder.mkdir()
            answers: list[Answer] = []
            start = threading.Barrier(2)

            def submit(log: Log, folder: Path = folder, start: threading.Barrier = start) -> None:
                own = open_witness(folder)
                start.wait()
                answers.append(own.add_checkpoint(log.request(0, 30)))  # noqa: B023

            threads = [threading.Thread(target=submit, args=(log,)) for log in (LOG, FORK)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(answer.status for answer in answers) == [200, 409]


class TestHttp:
    @pytest.fixture
    def client(self, witness: Witness) -> Iterator[TestClient]:
        with TestClient(make_app(witness)) as client:
            yield client

    def test_statuses_and_types_are_those_of_the_protocol(self, client: TestClient) -> None:
        first = client.post("/add-checkpoint", content=LOG.request(0, 20))
        assert (first.status_code, first.text[0]) == (200, "—")
        behind = client.post("/add-checkpoint", content=LOG.request(0, 20))
        assert (behind.status_code, behind.text) == (409, "20\n")
        assert behind.headers["content-type"].startswith("text/x.tlog.size")

    def test_a_flood_is_cut(self, client: TestClient) -> None:
        assert client.post("/add-checkpoint", content=b"x" * 70_000).status_code == 413

    def test_it_tells_its_key(self, client: TestClient, witness: Witness) -> None:
        assert client.get("/healthz").text.strip() == witness.verifier_key.text

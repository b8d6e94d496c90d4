"""Keys of the log change in the open: the drill with a real witness, and every forgery (T12)."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select
from typer.testing import CliRunner

import service.models
from service.cli import app
from service.database import Database
from service.ledger import fsck, notes, receipts, rotation
from service.ledger.checkpoints import system_origin
from service.ledger.errors import KeySuperseded
from service.ledger.keys import LedgerKeys, adopt_next_log_key, load_keys, next_log_key
from service.ledger.models import Entry, SignedCheckpoint
from service.ledger.publisher import make_publisher
from service.settings import Settings
from service.witness.folder import open_witness
from service.witness.server import make_app
from tests.deploy.test_verify_disclosures import bare, edited
from tests.deploy.test_verify_evidence import Files, files_of, pack, resign
from tests.deploy.test_verify_ledger import verifier
from tests.service.ledger import world as w

Body = dict[str, Any]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving(folder: Path, port: int) -> Iterator[None]:
    """The witness of a folder behind a real socket."""
    application = make_app(open_witness(folder))
    server = uvicorn.Server(uvicorn.Config(application, port=port, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    yield
    server.should_exit = True
    thread.join()


class House:
    """One deployment with one witness, run by its commands."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.watcher = folder / "witness"
        self.environment = {"RLDP_DATA_DIR": str(folder / "data")}
        vkey = self.rldp("witness", "init", "--dir", str(self.watcher), "--name", "w.example")[1]
        (folder / "witnesses").write_text(f"{vkey.strip()} http://127.0.0.1:{self.port}\n")
        self.environment["RLDP_WITNESSES"] = str(folder / "witnesses")
        self.environment["RLDP_WITNESS_QUORUM"] = "1"
        self.settings = Settings(
            data_dir=folder / "data", witnesses=folder / "witnesses", witness_quorum=1
        )
        self.settings.data_dir.mkdir()
        self.trust(self.rldp("ledger", "vkey")[1].strip())
        self.db = Database(self.settings.resolved_database_url)
        service.models.metadata.create_all(self.db.engine)

    def rldp(self, *arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, list(arguments), env=self.environment)
        return done.exit_code, done.stdout + done.stderr

    def trust(self, vkey: str, *options: str) -> int:
        return self.rldp("witness", "trust", "--dir", str(self.watcher), vkey, *options)[0]

    def turn(self) -> None:
        make_publisher(self.settings, self.db).turn()

    def policy(self, name: str) -> Path:
        path = self.folder / name
        assert self.rldp("ledger", "policy", "--out", str(path))[0] == 0
        return path

    def count(self, kind: str) -> int:
        with self.db.reading() as session:
            return len(session.scalars(select(Entry.idx).where(Entry.type == kind)).all())

    @property
    def keys(self) -> LedgerKeys:
        return load_keys(self.settings)


@dataclass(frozen=True)
class Scene:
    """What is left of a rotation: bundles before and after, policies, keys old and new."""

    early: Files
    late: Files
    old_policy: Path
    policy: Path
    receipt: str
    old_keys: LedgerKeys
    keys: LedgerKeys


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The drill itself: prepare, refused, pinned, activated, and a new receipt key."""
    house = House(tmp_path_factory.mktemp("rotation"))
    with serving(house.watcher, house.port):
        world = w.open_world(house.db)
        w.publish(world, w.run_job(world, run_plan=w.plan(mode="adaptive_sigma")))
        house.turn()
        old_keys, old_policy = house.keys, house.policy("old.json")
        early = files_of(world, old_keys)
        receipt = receipt_of(house)
        statement = house.folder / "rotation"
        stale = make_publisher(house.settings, house.db)
        stale.reload = None  # another host, whose folder nobody has changed
        code, told = house.rldp("ledger", "rotate-key", "prepare", "--out", str(statement))
        vkey = next(part for part in told.split("'") if part.startswith("rldp.local/"))
        assert code == 0, told
        code, told = house.rldp("ledger", "rotate-key", "activate")
        assert (code != 0, "0 witnesses know the next key" in flat(told)) == (True, True), told
        assert (house.keys.log_public, house.count("key.rotated")) == (old_keys.log_public, 0)
        assert house.trust(vkey) != 0, "without the statement"
        assert house.trust(vkey, "--rotation", str(statement)) == 0
    policy = house.policy("new.json")
    with serving(house.watcher, house.port):
        code, told = house.rldp("ledger", "rotate-key", "activate")
        assert code == 0, told
        with pytest.raises(KeySuperseded):
            stale.turn()
        w.publish(world, w.run_job(world, run_plan=w.plan(mode="adaptive_sigma")))
        house.turn()
        assert house.rldp("ledger", "rotate-key", "receipts")[0] == 0
        house.turn()
        size = len(early["entries.jsonl"].splitlines())
        system_size = verifier.parse_proof(early["system.tlog-proof"]).checkpoint.size
        late = files_of(world, house.keys, since=size, system_since=system_size)
        with house.db.reading() as session:
            assert fsck.check_all(session) == []
    yield Scene(early, late, old_policy, policy, receipt, old_keys, house.keys)
    house.db.dispose()


def flat(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


def receipt_of(house: House) -> str:
    with house.db.reading() as session:
        settle = session.scalars(select(Entry).where(Entry.type == "settle")).one()
        return str(receipts.receipt_to_dict(session, house.keys, settle)["proof"])


class Auditor:
    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys

    def check(self, files: Files, policy: Path, *options: str) -> tuple[int, str]:
        path = pack(files, self.folder / "bundle.zip")
        code = verifier.main([str(path), f"--policy={policy}", *options])
        printed = self.capsys.readouterr()
        return code, printed.out + printed.err


@pytest.fixture
def auditor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Auditor:
    return Auditor(tmp_path, capsys)


class TestDrill:
    def test_the_new_policy_follows_the_rotation_with_all_that_was_kept(
        self, scene: Scene, auditor: Auditor, tmp_path: Path
    ) -> None:
        kept = {"early.zip": None, "checkpoint": scene.early["checkpoint"]}
        kept["system"] = scene.early["system.tlog-proof"].partition(b"\n\n")[2]
        pack(scene.early, tmp_path / "early.zip")
        for name, raw in kept.items():
            if raw is not None:
                (tmp_path / name).write_bytes(raw)
        (tmp_path / "receipt").write_text(scene.receipt)
        options = [f"--previous={tmp_path / name}" for name in kept]
        options.append(f"--receipt={tmp_path / 'receipt'}")
        code, text = auditor.check(scene.late, scene.policy, *options)
        assert (code, "witnesses 1 of 1" in text) == (0, True), text

    def test_bundles_from_before_still_pass_under_either_policy(
        self, scene: Scene, auditor: Auditor
    ) -> None:
        for policy in (scene.policy, scene.old_policy):
            assert auditor.check(scene.early, policy)[0] == 0

    def test_an_auditor_who_did_not_pin_the_new_key_is_warned(
        self, scene: Scene, auditor: Auditor
    ) -> None:
        code, text = auditor.check(scene.late, scene.old_policy)
        assert (code, "rotated to a log key the policy does not pin" in text) == (1, True), text

    def test_both_keys_signed_what_the_log_says(self, scene: Scene) -> None:
        told = [b["data"] for b in bodies(scene.late) if b["type"] == "key.rotated"]
        assert [one["role"] for one in told] == ["log", "receipt", "receipt"]
        assert (told[0]["old"], told[0]["new"]) == (
            scene.old_keys.log_public,
            scene.keys.log_public,
        )
        assert told[1]["new"] == scene.old_keys.receipt_public
        assert told[2]["new"] == scene.keys.receipt_public
        assert scene.keys.log_chain == (scene.old_keys.log_public, scene.keys.log_public)


def bodies(files: Files) -> list[Body]:
    return [json.loads(line) for line in files["entries.jsonl"].splitlines()]


def rotated(files: Files, nth: int = 0) -> int:
    return [b["idx"] for b in bodies(files) if b["type"] == "key.rotated"][nth]


STRANGER = Ed25519PrivateKey.generate()
FORGED: dict[str, tuple[Callable[[Body], object], str]] = {
    "another new key": (lambda d: d.update(new="ab" * 32), "of the authority key does not fit"),
    "another old key": (lambda d: d.update(old="ab" * 32), "old log key does not vouch"),
    "another authority": (
        lambda d: d.update(old="ab" * 32, authority="ab" * 32),
        "of the authority key does not fit",
    ),
    "signatures exchanged": (
        lambda d: d.update(
            authority_signature=d["new_signature"], new_signature=d["authority_signature"]
        ),
        "of the authority key does not fit",
    ),
    "the new key did not sign": (
        lambda d: d.update(new_signature=d["authority_signature"]),
        "of the new key does not fit",
    ),
    "no change": (lambda d: d.update(new=d["old"]), "no new key"),
    "another deployment": (lambda d: d.update(origin="rldp.local/x"), "does not fit"),
    "another role": (lambda d: d.update(role="worker"), "unknown role"),
    "a field more": (lambda d: d.update(note="x"), "unknown field"),
}


class TestForgery:
    @pytest.mark.parametrize("name", FORGED)
    def test_a_rotation_that_was_not_signed_so_is_found(
        self, scene: Scene, name: str, auditor: Auditor
    ) -> None:
        change, told = FORGED[name]
        index = rotated(scene.late)
        forged = edited(bare(scene.late), index, lambda body: change(body["data"]))
        code, text = auditor.check(forged, scene.policy)
        assert (code, told in text, f"entry {index}" in text) == (1, True, True), text

    def test_a_thief_of_the_old_key_cannot_appoint_an_own_one(
        self, scene: Scene, auditor: Auditor
    ) -> None:
        data = appointed(scene.old_keys, STRANGER)
        forged = edited(bare(scene.late), rotated(scene.late), lambda body: body.update(data=data))
        code, text = auditor.check(forged, scene.policy)
        assert code == 1, text
        assert "rotated out" in text or "does not pin" in text

    def test_a_receipt_key_vouched_for_by_a_stranger_is_found(
        self, scene: Scene, auditor: Auditor
    ) -> None:
        foreign = LedgerKeys(log=STRANGER, receipt=scene.old_keys.receipt)
        data = appointed(foreign, scene.keys.receipt, role="receipt")
        forged = edited(
            bare(scene.late), rotated(scene.late, 2), lambda body: body.update(data=data)
        )
        code, text = auditor.check(forged, scene.policy)
        assert (code, "rotated out" in text) == (1, True), text

    def test_the_old_key_signs_no_checkpoint_after_the_rotation(
        self, scene: Scene, auditor: Auditor
    ) -> None:
        own_system = resign(scene.late, scene.old_keys)
        code, text = auditor.check(own_system, scene.policy)
        assert (code, "the checkpoint is not signed by the log's key" in text) == (1, True), text

    def test_the_old_key_signs_no_system_checkpoint_after_it(
        self, scene: Scene, auditor: Auditor
    ) -> None:
        forged = resign(scene.late, scene.old_keys) | {"checkpoint": scene.late["checkpoint"]}
        code, text = auditor.check(forged, scene.policy)
        assert (code, "rotated out" in text) == (1, True), text

    def test_the_new_key_signs_nothing_from_before(self, scene: Scene, auditor: Auditor) -> None:
        release = next(name for name in scene.early if name.startswith("releases/"))
        proof = verifier.parse_proof(scene.early[release])
        made = notes.Checkpoint(
            origin=proof.checkpoint.origin, size=proof.checkpoint.size, root=proof.checkpoint.root
        )
        head = scene.early[release].partition(b"\n\n")[0]
        note = scene.keys.sign_checkpoint(made).full.encode()
        code, text = auditor.check(scene.late | {release: head + b"\n\n" + note}, scene.policy)
        assert (code, "checkpoint of a release proof is not signed" in text) == (1, True), text


def appointed(keys: LedgerKeys, new: Ed25519PrivateKey, role: Any = "log") -> Body:
    """What the holder of some keys would enter."""
    old = keys.log_public if role == "log" else keys.receipt_public
    origin = system_origin(keys)
    text = notes.rotation_text(
        origin=origin, role=role, old=old, new=rotation.public_hex(new)
    ).encode()
    return {
        "authority": keys.log_public,
        "authority_signature": base64.b64encode(keys.log.sign(text)).decode(),
        "new": rotation.public_hex(new),
        "new_signature": base64.b64encode(new.sign(text)).decode(),
        "old": old,
        "origin": origin,
        "role": role,
    }


class TestInterrupted:
    def test_a_rotation_cut_off_after_its_entry_signs_nothing_and_can_be_repeated(
        self, tmp_path: Path
    ) -> None:
        settings = Settings(data_dir=tmp_path)
        with w.sqlite_database(tmp_path) as db:
            w.open_world(db)
            publisher = make_publisher(settings, db)
            publisher.turn()
            before = publisher.keys
            new = next_log_key(settings, make=True)
            with db.transaction() as session:
                rotation.enter_log_key(session, before, new)
            with pytest.raises(KeySuperseded):
                publisher.turn()
            with db.transaction() as session:
                rotation.enter_log_key(session, before, new)
            with db.reading() as session:
                logs = session.scalars(select(Entry.log_id).where(Entry.type == "key.rotated"))
                assert sorted(logs) == sorted([*logs_of(db)] * 2)  # the log's and the receipts'
            adopt_next_log_key(settings)
            assert publisher.turn() > 0
            assert publisher.keys.log_chain == (before.log_public, rotation.public_hex(new))

    def test_a_cut_between_the_two_files_changes_no_name(self, tmp_path: Path) -> None:
        settings = Settings(data_dir=tmp_path)
        before = load_keys(settings)
        new = next_log_key(settings, make=True)
        shutil.copy(settings.keys_dir / "log.pem", tmp_path / "old.pem")
        adopt_next_log_key(settings)
        shutil.copy(settings.keys_dir / "log.pem", settings.keys_dir / "log.next.pem")
        shutil.copy(tmp_path / "old.pem", settings.keys_dir / "log.pem")  # as if cut here
        assert load_keys(settings).log_chain == before.log_chain
        adopt_next_log_key(settings)
        assert load_keys(settings).log_chain == (before.log_public, rotation.public_hex(new))


def logs_of(db: Database) -> set[str]:
    with db.reading() as session:
        return set(session.scalars(select(SignedCheckpoint.log_id)))

"""The verifier on checkpoints, witnesses, growth, receipts and envelopes (P8; ledger.md 12, 17).

The operator of these tests is dishonest and holds the database and, where said, the log's
keys; the witnesses, the earlier bundle and the receipts in clients' hands are out of reach.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select
from typer.testing import CliRunner

from service.cli import app
from service.ledger import bundle, checkpoints, notes, receipts
from service.ledger.evidence import certificate_proof
from service.ledger.keys import LedgerKeys, load_keys
from service.ledger.models import Entry
from service.ledger.publisher import Publisher
from service.settings import Settings
from tests.deploy.test_verify_ledger import canonical, verifier
from tests.service.ledger import world as w
from tests.service.ledger.street import Street, open_street
from tests.service.ledger.test_merkle import check_consistencies, check_inclusions

Files = dict[str, bytes]
SIGNED_AGO = 100


@dataclass(frozen=True)
class Scene:
    """Two bundles of one log, its keys, and what an auditor and a client hold."""

    early: Files
    late: Files
    policy: Path
    keys: LedgerKeys
    receipt: str
    folder: Path
    proof: str  # of the first, released certificate
    job: str

    @property
    def entries(self) -> list[bytes]:
        return self.late["entries.jsonl"].splitlines()


def files_of(world: w.World, keys: LedgerKeys, **options: Any) -> Files:
    with (
        world.db.reading() as session,
        bundle.write_bundle(session, keys=keys, tenant_id=world.tenant, **options) as archive,
        zipfile.ZipFile(archive) as opened,
    ):
        return {name: opened.read(name) for name in opened.namelist()}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("evidence")
    keys = load_keys(Settings(data_dir=folder))
    street = open_street(folder / "street", keys, clock=lambda: time.time() - SIGNED_AGO)
    with w.sqlite_database(folder) as db:
        world = w.open_world(db)
        publisher = publisher_of(world, keys, street, folder)
        publisher.turn()
        first = w.run_job(world, run_plan=w.plan(mode="adaptive_sigma"))
        publisher.turn()
        early = files_of(world, keys)
        w.publish(world, first)
        w.run_job(world, run_plan=w.plan(mode="adaptive_sigma"))
        publisher.turn()
        with db.reading() as session:
            last = session.scalars(
                select(Entry).where(Entry.type == "settle").order_by(Entry.idx.desc())
            ).first()
            assert last is not None
            receipt = receipts.receipt_to_dict(session, keys, last)["proof"]
            proof = certificate_proof(session, last.log_id, first)
        size = len(early["entries.jsonl"].splitlines())
        yield Scene(
            early=early,
            late=files_of(
                world,
                keys,
                since=size,
                system_since=verifier.parse_proof(early["system.tlog-proof"]).checkpoint.size,
            ),
            policy=write_policy(folder, keys, street),
            keys=keys,
            receipt=receipt,
            folder=folder,
            proof=proof,
            job=first,
        )


def publisher_of(world: w.World, keys: LedgerKeys, street: Street, folder: Path) -> Publisher:
    return Publisher(
        db=world.db,
        keys=keys,
        witnesses=street.clients(),
        quorum=2,
        folder=folder / "memory",
        post=street.post,
    )


def write_policy(folder: Path, keys: LedgerKeys, street: Street, **changes: Any) -> Path:
    policy = {
        "format": "dp-ledger-policy/1",
        "log_key": keys.log_public,
        "max_age_seconds": 3600,
        "previous_required": False,
        "quorum": 2,
        "receipt_key": keys.receipt_public,
        "system_origin": checkpoints.system_origin(keys),
        "witnesses": [server.verifier_key.text for server in street.servers.values()],
    } | changes
    path = folder / f"policy-{hashlib.sha256(canonical(policy).encode()).hexdigest()[:8]}.json"
    path.write_text(json.dumps(policy))
    return path


def pack(files: Files, path: Path) -> Path:
    """Writes a bundle whose manifest fits, whatever is inside."""
    lines = files["entries.jsonl"].splitlines()
    manifest = json.loads(files["manifest.json"]) | {
        "files": {
            name: hashlib.sha256(raw).hexdigest()
            for name, raw in files.items()
            if name != "manifest.json"
        },
        "root": verifier.merkle_root([verifier.leaf_of(line) for line in lines]),
        "size": len(lines),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in files.items():
            archive.writestr(
                name, raw if name != "manifest.json" else json.dumps(manifest).encode()
            )
    return path


class Auditor:
    """Runs the verifier as an auditor would."""

    def __init__(self, scene: Scene, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.scene, self.folder, self.capsys = scene, folder, capsys

    def check(self, files: Files, *options: str, policy: Path | None = None) -> tuple[int, str]:
        path = pack(files, self.folder / "bundle.zip")
        trusted = policy or self.scene.policy
        code = verifier.main([str(path), f"--policy={trusted}", *options])
        printed = self.capsys.readouterr()
        return code, printed.out + printed.err

    def keep(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def keep_bundle(self, files: Files) -> Path:
        return pack(files, self.folder / "kept.zip")

    def keep_receipt(self) -> str:
        return f"--receipt={self.keep('mine.tlog-proof', self.scene.receipt.encode())}"


@pytest.fixture
def auditor(scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Auditor:
    return Auditor(scene, tmp_path, capsys)


# --- what a dishonest operator can do --------------------------------------------------------


def rechain(lines: list[bytes]) -> list[bytes]:
    made, prev = [], "0" * 64
    for index, line in enumerate(lines):
        body = json.loads(line) | {"idx": index, "prev": prev}
        made.append(canonical(body).encode())
        prev = verifier.leaf_of(made[-1])
    return made


def with_entries(files: Files, lines: list[bytes]) -> Files:
    return files | {"entries.jsonl": b"".join(line + b"\n" for line in lines)}


def edit(lines: list[bytes], index: int) -> list[bytes]:
    """Changes something no rule of the replay can object to: who did it."""
    body = json.loads(lines[index])
    body["actor"] = "usr_other"
    return rechain([*lines[:index], canonical(body).encode(), *lines[index + 1 :]])


def resign(
    files: Files, keys: LedgerKeys, *, keep_system: bool = False, recovery: int = 0
) -> Files:
    """Signs whatever the entries are now, with the log's own keys, and forges the system log."""
    lines = files["entries.jsonl"].splitlines()
    old = verifier.parse_checkpoint(files["checkpoint"])
    root = verifier.merkle_root([verifier.leaf_of(line) for line in lines])
    made = notes.Checkpoint(origin=old.origin, size=len(lines), root=root)
    forged = files | {"checkpoint": keys.sign_checkpoint(made).full.encode()}
    if keep_system:
        return forged
    body = json.loads(files["system-entry.json"])
    body["data"] |= {"root": root, "size": len(lines)}
    line = canonical(body | {"idx": 0}).encode()
    above = notes.Checkpoint(
        origin=checkpoints.system_origin(keys, recovery), size=1, root=verifier.leaf_of(line)
    )
    proof = notes.tlog_proof(idx=0, path=[], checkpoint=keys.sign_checkpoint(above).full)
    forged |= {"system-entry.json": line + b"\n", "system.tlog-proof": proof.encode()}
    dropped = ("receipts/", "releases/", "consistency")
    return {name: raw for name, raw in forged.items() if not name.startswith(dropped)}


class TestHonest:
    def test_everything_is_established(self, scene: Scene, auditor: Auditor) -> None:
        kept = auditor.keep_bundle(scene.early)
        note = auditor.keep("old-checkpoint", scene.early["checkpoint"])
        code, text = auditor.check(
            scene.late, f"--previous={kept}", f"--previous={note}", auditor.keep_receipt()
        )
        assert code == 0, text
        assert text.startswith("OK ")
        size = len(scene.early["entries.jsonl"].splitlines())
        assert f"consistent with {size}, {size}" in text
        assert "witnesses 2 of 2 (1" in text  # signed 100 s ago

    def test_growth_of_the_witnessed_log_is_proved(self, scene: Scene, auditor: Auditor) -> None:
        system = verifier.parse_proof(scene.early["system.tlog-proof"]).checkpoint.note
        raw = scene.early["system.tlog-proof"].partition(b"\n\n")[2]
        kept = auditor.keep("old-system", raw)
        assert system.text.encode() in raw
        assert auditor.check(scene.late, f"--previous={kept}")[0] == 0

    def test_a_proof_from_another_size_leaves_that_open(
        self, scene: Scene, auditor: Auditor
    ) -> None:
        told = json.loads(scene.late["consistency.json"])
        told["system"]["from"] -= 1
        changed = scene.late | {"consistency.json": json.dumps(told).encode()}
        raw = scene.early["system.tlog-proof"].partition(b"\n\n")[2]
        code, text = auditor.check(changed, f"--previous={auditor.keep('old-system', raw)}")
        assert (code, "ask with system_since=" in text) == (3, True), text

    def test_the_result_as_json_counts_what_was_checked(
        self, scene: Scene, auditor: Auditor
    ) -> None:
        code, text = auditor.check(scene.late, "--json")
        result = json.loads(text)
        assert code == 0 and result["signatures_checked"] and result["checkpoint"]
        assert (result["certificates"], result["certificates_signed"]) == (2, 2)
        assert result["receipts"] == sum(
            raw.count(b"\n") for name, raw in scene.late.items() if name.startswith("receipts/")
        )

    def test_without_a_policy_it_says_that_no_signature_was_trusted(
        self, scene: Scene, auditor: Auditor
    ) -> None:
        path = pack(scene.late, auditor.folder / "b.zip")
        code = verifier.main([str(path)])
        assert code == 0
        assert "signatures not checked: no --policy given" in auditor.capsys.readouterr().out

    def test_the_command_passes_the_policy_on(self, scene: Scene, auditor: Auditor) -> None:
        import subprocess
        import sys

        path = pack(scene.late, auditor.folder / "b.zip")
        done = subprocess.run(
            [sys.executable, "-m", "service.cli", "verify", str(path), "--policy", scene.policy],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, "witnesses 2 of 2" in done.stdout) == (0, True), done.stderr


class TestWithoutKeys:
    """The operator cannot sign: every act breaks the checkpoint."""

    def test_an_edit_is_named_exactly_by_an_earlier_bundle(
        self, scene: Scene, auditor: Auditor
    ) -> None:
        kept = auditor.keep_bundle(scene.early)
        forged = with_entries(scene.late, edit(scene.entries, 9))
        code, text = auditor.check(drop(forged, "receipts/"), f"--previous={kept}")
        assert (code, "at entry 9:" in text) == (1, True), text

    def test_an_edit_lies_after_the_last_entry_a_receipt_still_fits(
        self, scene: Scene, auditor: Auditor
    ) -> None:
        index = len(scene.entries) - 1
        code, text = auditor.check(with_entries(scene.late, edit(scene.entries, index)))
        assert (code, "FAILED at entry" in text) == (1, True), text
        told = [int(line.split(b" ")[0]) for line in receipt_lines(scene.late)]
        assert index in told, "settle has a receipt"
        assert f"at entry {index}: a receipt tells another entry" in text

    @pytest.mark.parametrize("keeps_bundle", [True, False])
    @pytest.mark.parametrize("act", ["delete", "reorder", "insert", "truncate"])
    def test_each_act_is_found(
        self, scene: Scene, auditor: Auditor, act: str, keeps_bundle: bool
    ) -> None:
        lines = list(scene.entries)
        if act == "delete":
            del lines[9]
        elif act == "reorder":
            lines[9], lines[10] = lines[10], lines[9]
        elif act == "insert":
            lines.insert(9, lines[1])
        else:
            lines = lines[:-1]
        options = [f"--previous={auditor.keep_bundle(scene.early)}"] if keeps_bundle else []
        for made in (lines, rechain(lines)):
            assert auditor.check(with_entries(scene.late, made), *options)[0] == 1

    def test_a_strange_key_is_no_log_key(self, scene: Scene, auditor: Auditor) -> None:
        stranger = replace(scene.keys, log=Ed25519PrivateKey.generate())
        code, text = auditor.check(resign(scene.late, stranger))
        assert (code, "not signed by the log's key" in text) == (1, True), text


def drop(files: Files, start: str) -> Files:
    return {name: raw for name, raw in files.items() if not name.startswith(start)}


def receipt_lines(files: Files) -> list[bytes]:
    return [
        line
        for name, raw in files.items()
        if name.startswith("receipts/")
        for line in raw.splitlines()
    ]


class TestWithTheLogsKeys:
    """The operator signs what it likes; witnesses, receipts and kept checkpoints do not fit."""

    def forged(self, scene: Scene) -> Files:
        """The last entry is another one: no steward's signature covers it."""
        last = len(scene.entries) - 1
        return resign(with_entries(scene.late, edit(scene.entries, last)), scene.keys)

    def test_without_witnesses_it_is_not_established(self, scene: Scene, auditor: Auditor) -> None:
        code, text = auditor.check(self.forged(scene))
        assert (code, "0 of 2 witnesses signed" in text) == (3, True), text

    def test_a_checkpoint_shown_before_finds_it(self, scene: Scene, auditor: Auditor) -> None:
        kept = auditor.keep("old", scene.late["checkpoint"])
        code, text = auditor.check(self.forged(scene), f"--previous={kept}")
        assert (code, "the log was rewritten" in text) == (1, True), text

    def test_a_bundle_shown_before_names_the_entry(self, scene: Scene, auditor: Auditor) -> None:
        kept = auditor.keep_bundle(scene.late)
        code, text = auditor.check(self.forged(scene), f"--previous={kept}")
        assert (code, f"at entry {len(scene.entries) - 1}:" in text) == (1, True), text

    def test_a_clients_receipt_finds_it(self, scene: Scene, auditor: Auditor) -> None:
        code, text = auditor.check(self.forged(scene), auditor.keep_receipt())
        assert (code, "a receipt tells another entry" in text) == (1, True), text

    def test_a_past_that_stewards_signed_does_not_take_a_change_at_all(
        self, scene: Scene, auditor: Auditor
    ) -> None:
        forged = resign(with_entries(scene.late, edit(scene.entries, 9)), scene.keys)
        code, text = auditor.check(forged)
        assert (code, "the signature does not fit" in text) == (1, True), text
        kept = auditor.keep_bundle(scene.early)
        code, text = auditor.check(forged, f"--previous={kept}")
        assert (code, "at entry 9:" in text) == (1, True), text

    def test_a_rollback_is_found_by_any_later_checkpoint(
        self, scene: Scene, auditor: Auditor
    ) -> None:
        kept = auditor.keep("new", scene.late["checkpoint"])
        code, text = auditor.check(scene.early, f"--previous={kept}")
        assert (code, "rewritten or cut" in text) == (1, True), text
        raw = scene.late["system.tlog-proof"].partition(b"\n\n")[2]
        code, text = auditor.check(scene.early, f"--previous={auditor.keep('sys', raw)}")
        assert (code, "shorter than it was: a rollback" in text) == (1, True), text

    def test_a_cut_log_is_found_by_a_receipt_that_is_due(
        self, scene: Scene, auditor: Auditor
    ) -> None:
        cut = resign(with_entries(scene.late, scene.entries[:9]), scene.keys)
        cut = drop(cut, "certificates/") | {"settings.jsonl": b""}
        origin = verifier.parse_checkpoint(scene.late["checkpoint"]).origin
        due = scene.keys.sign_receipt(
            origin=origin, idx=20, leaf="ab" * 32, publish_by="2026-01-01T00:00Z"
        )
        code, text = auditor.check(cut, f"--receipt={auditor.keep('r', due.full.encode())}")
        assert (code, "at entry 9: the log is cut" in text) == (1, True), text

    def test_a_receipt_that_is_not_due_yet_stays_open(self, scene: Scene, auditor: Auditor) -> None:
        origin = verifier.parse_checkpoint(scene.late["checkpoint"]).origin
        young = scene.keys.sign_receipt(
            origin=origin, idx=10_000, leaf="ab" * 32, publish_by="2999-01-01T00:00Z"
        )
        code, text = auditor.check(
            scene.late, f"--receipt={auditor.keep('r', young.full.encode())}"
        )
        assert (code, "is not due before" in text) == (3, True), text

    def test_a_split_view_between_tenant_and_system_log_is_found(
        self, scene: Scene, auditor: Auditor
    ) -> None:
        lines = edit(scene.entries, len(scene.entries) - 1)
        split = resign(with_entries(scene.late, lines), scene.keys, keep_system=True)
        code, text = auditor.check(drop(drop(split, "receipts/"), "releases/"))
        assert (code, "a split view" in text) == (1, True), text

    def test_a_split_view_of_the_system_log_is_found(self, scene: Scene, auditor: Auditor) -> None:
        above = verifier.parse_proof(scene.late["system.tlog-proof"]).checkpoint
        other = notes.Checkpoint(origin=above.origin, size=above.size, root="ab" * 32)
        shown = scene.keys.sign_checkpoint(other).full.encode()
        code, text = auditor.check(scene.late, f"--previous={auditor.keep('shown', shown)}")
        assert (code, "of one size: a split view" in text) == (1, True), text

    def test_a_forged_history_of_the_system_log_is_found(
        self, scene: Scene, auditor: Auditor
    ) -> None:
        old = verifier.parse_proof(scene.early["system.tlog-proof"]).checkpoint
        other = notes.Checkpoint(origin=old.origin, size=old.size, root="ab" * 32)
        shown = scene.keys.sign_checkpoint(other).full.encode()
        code, text = auditor.check(scene.late, f"--previous={auditor.keep('shown', shown)}")
        assert (code, "does not extend the earlier checkpoint" in text) == (1, True), text


class TestWitnesses:
    def change_line(self, files: Files, change: Callable[[str], str]) -> Files:
        head, gap, note = files["system.tlog-proof"].decode().partition("\n\n")
        parsed = note.split("\n")
        parsed[-2] = change(parsed[-2])  # the last signature line
        return files | {"system.tlog-proof": (head + gap + "\n".join(parsed)).encode()}

    def test_a_forged_cosignature_does_not_count(self, scene: Scene, auditor: Auditor) -> None:
        def forge(line: str) -> str:
            name, _, value = line.removeprefix("— ").partition(" ")
            raw = bytearray(base64.b64decode(value))
            raw[-1] ^= 1
            return f"— {name} {base64.b64encode(bytes(raw)).decode()}"

        code, text = auditor.check(self.change_line(scene.late, forge))
        assert (code, "witnesses 1 of 2" in text) == (3, True), text

    def test_a_strange_witness_does_not_count(self, scene: Scene, auditor: Auditor) -> None:
        def replace_line(_line: str) -> str:
            above = verifier.parse_proof(scene.late["system.tlog-proof"]).checkpoint
            key = Ed25519PrivateKey.generate()
            return notes.cosign(above.note.text, "witness.example/w2", key, 5).line.strip()

        code, text = auditor.check(self.change_line(scene.late, replace_line))
        assert (code, "1 of 2 witnesses signed" in text) == (3, True), text

    def test_old_cosignatures_are_not_established(self, scene: Scene, auditor: Auditor) -> None:
        code, text = auditor.check(scene.late, f"--max-age={SIGNED_AGO - 1}")
        assert (code, "age: cosigned" in text) == (3, True), text

    def test_a_policy_may_demand_an_earlier_checkpoint(
        self, scene: Scene, auditor: Auditor
    ) -> None:
        told = json.loads(scene.policy.read_text()) | {"previous_required": True}
        strict = auditor.keep("strict.json", json.dumps(told).encode())
        code, text = auditor.check(scene.late, policy=strict)
        assert (code, "demands an earlier checkpoint" in text) == (3, True), text
        kept = auditor.keep("old", scene.early["checkpoint"])
        assert auditor.check(scene.late, f"--previous={kept}", policy=strict)[0] == 0

    def test_a_bundle_stripped_of_its_evidence_is_not_established(
        self, scene: Scene, auditor: Auditor
    ) -> None:
        bare = scene.late
        for name in ("checkpoint", "system", "consistency", "releases/", "receipts/"):
            bare = drop(bare, name)
        code, text = auditor.check(bare)
        assert (code, "no signed checkpoint" in text) == (3, True), text
        assert auditor.check(drop(scene.late, "system-entry.json"))[0] == 1


class TestReceiptsAndEnvelopes:
    def test_a_receipt_by_another_key_is_refused(self, scene: Scene, auditor: Auditor) -> None:
        stranger = replace(scene.keys, receipt=Ed25519PrivateKey.generate())
        origin = verifier.parse_checkpoint(scene.late["checkpoint"]).origin
        forged = stranger.sign_receipt(
            origin=origin, idx=3, leaf="ab" * 32, publish_by="2026-01-01T00:00Z"
        )
        code, text = auditor.check(
            scene.late, f"--receipt={auditor.keep('r', forged.full.encode())}"
        )
        assert (code, "not signed by the receipt key" in text) == (1, True), text

    def test_a_receipt_whose_proof_does_not_hold_is_refused(
        self, scene: Scene, auditor: Auditor
    ) -> None:
        lines = scene.receipt.split("\n")
        lines[3], lines[4] = lines[4], lines[3]
        path = auditor.keep("r", "\n".join(lines).encode())
        code, text = auditor.check(scene.late, f"--receipt={path}")
        assert (code, "proof of a receipt does not hold" in text) == (1, True), text

    def certificate(self, files: Files) -> str:
        return next(name for name in files if name.startswith("certificates/"))

    def test_an_unsigned_certificate_is_refused(self, scene: Scene, auditor: Auditor) -> None:
        name = self.certificate(scene.late)
        payload = base64.b64decode(json.loads(scene.late[name])["payload"])
        plain = drop(scene.late, name) | {name.replace(".dsse", ""): payload + b"\n"}
        code, text = auditor.check(plain)
        assert (code, "is not signed" in text) == (1, True), text

    def test_a_certificate_signed_by_another_key_is_refused(
        self, scene: Scene, auditor: Auditor
    ) -> None:
        name = self.certificate(scene.late)
        envelope = json.loads(scene.late[name])
        forged = Ed25519PrivateKey.generate().sign(b"anything")
        envelope["signatures"][0]["sig"] = base64.b64encode(forged).decode()
        code, text = auditor.check(scene.late | {name: canonical(envelope).encode() + b"\n"})
        assert (code, "not signed by the log's key" in text) == (1, True), text

    def test_a_release_proof_of_another_entry_is_refused(
        self, scene: Scene, auditor: Auditor
    ) -> None:
        name = next(name for name in scene.late if name.startswith("releases/"))
        head, gap, rest = scene.late[name].partition(b"index ")
        index, line, tail = rest.partition(b"\n")
        moved = head + gap + str(int(index) - 1).encode() + line + tail
        code, text = auditor.check(scene.late | {name: moved})
        assert (code, "does not hold" in text) == (1, True), text


class TestOneCertificate:
    """What a reader can check who has the certificate, its proof and the policy, but no log."""

    def run(
        self,
        auditor: Auditor,
        *options: str,
        envelope: bytes | None = None,
        proof: str | None = None,
        trusted: bool = True,
    ) -> tuple[int, str]:
        scene = auditor.scene
        raw = envelope or scene.late[f"certificates/{scene.job}.dsse.json"]
        path = auditor.keep("it.dsse.json", raw)
        told = auditor.keep("it.tlog-proof", (proof or scene.proof).encode())
        policy = [f"--policy={scene.policy}"] if trusted else []
        code = verifier.main([str(path), f"--proof={told}", *policy, *options])
        printed = auditor.capsys.readouterr()
        return code, printed.out + printed.err

    def test_is_established_with_its_place_in_the_log(self, auditor: Auditor) -> None:
        code, text = self.run(auditor)
        assert code == 0 and text.startswith(f"OK certificate of {auditor.scene.job}"), text
        assert "released; named by entry" in text

    def test_needs_a_policy(self, auditor: Auditor) -> None:
        code, text = self.run(auditor, trusted=False)
        assert (code, "needs --policy" in text) == (1, True), text

    def test_another_certificate_under_this_proof_is_refused(self, auditor: Auditor) -> None:
        scene = auditor.scene
        name = next(n for n in scene.late if n.startswith("certificates/") and scene.job not in n)
        code, text = self.run(auditor, envelope=scene.late[name])
        assert (code, "names another certificate" in text) == (1, True), text

    def test_a_changed_claim_is_refused(self, auditor: Auditor) -> None:
        scene = auditor.scene
        envelope = json.loads(scene.late[f"certificates/{scene.job}.dsse.json"])
        statement = json.loads(base64.b64decode(envelope["payload"]))
        statement["predicate"]["claim"]["epsilon"] = "0.1"
        envelope["payload"] = base64.b64encode(canonical(statement).encode()).decode()
        code, text = self.run(auditor, envelope=canonical(envelope).encode())
        assert (code, "not signed by the log's key" in text) == (1, True), text

    @pytest.mark.parametrize("line", [1, 2, 3, -2])
    def test_a_changed_proof_is_refused(self, auditor: Auditor, line: int) -> None:
        lines = auditor.scene.proof.split("\n")
        lines[line] = lines[line][:-6] + ("A" if lines[line][-6] != "A" else "B") + lines[line][-5:]
        assert self.run(auditor, proof="\n".join(lines))[0] == 1

    def test_a_file_it_does_not_cover_is_refused(self, auditor: Auditor) -> None:
        other = auditor.keep("adapter_model.safetensors", b"another adapter")
        code, text = self.run(auditor, f"--artifact={other}")
        assert (code, "none of its artifacts" in text) == (1, True), text


class TestRandomDamage:
    """Any single changed byte of the evidence is noticed: nothing of it is decoration."""

    @pytest.mark.parametrize("seed", range(40))
    def test_is_noticed(self, scene: Scene, auditor: Auditor, seed: int) -> None:
        dice = random.Random(seed)
        name = dice.choice(sorted(n for n in scene.late if n != "manifest.json"))
        raw = bytearray(scene.late[name])
        while not raw:
            name = dice.choice(sorted(n for n in scene.late if n != "manifest.json"))
            raw = bytearray(scene.late[name])
        place = dice.randrange(len(raw))
        raw[place] ^= 1 << dice.randrange(7)
        system = scene.early["system.tlog-proof"].partition(b"\n\n")[2]
        kept = auditor.keep("old-system", system)
        code, text = auditor.check(scene.late | {name: bytes(raw)}, f"--previous={kept}")
        if name.startswith("certificates/") and b"keyid" in raw and code == 0:
            assert json.loads(raw)["signatures"][0]["keyid"]  # a hint that nobody trusts
            return
        assert code in (1, 3), (name, place, text)


def tampered(scene: Scene, dice: random.Random) -> Files:
    """One random act of an operator who holds the log's keys, or of one who does not."""
    lines, keys = list(scene.entries), scene.keys
    kept = len(scene.early["entries.jsonl"].splitlines())
    place = dice.randrange(1, kept - 1)  # inside what the earlier checkpoint covers
    act = dice.choice(["edit", "flip", "drop", "swap", "insert", "truncate", "roll back", "fork"])
    if act == "roll back":
        return scene.early if dice.random() < 0.5 else resign(scene.early, keys)
    if act == "edit":
        lines = edit(lines, place)
    elif act == "flip":
        raw = bytearray(lines[place])
        raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(7)
        lines[place] = bytes(raw)
    elif act == "drop":
        del lines[place]
    elif act == "swap":
        lines[place], lines[place + 1] = lines[place + 1], lines[place]
    elif act == "insert":
        lines.insert(place, lines[dice.randrange(len(lines))])
    elif act == "truncate":
        lines = lines[: dice.randrange(1, kept)]
    else:
        lines = edit(lines, dice.randrange(kept, len(lines)))
    is_rechained = act in ("edit", "fork") or (act != "flip" and dice.random() < 0.5)
    made = with_entries(scene.late, rechain(lines) if is_rechained else lines)
    if act == "fork" or dice.random() < 0.5:
        return resign(made, keys)
    return made


def check_mutants(scene: Scene, auditor: Auditor, seeds: range) -> None:
    """Given the newest checkpoint that was shown, every act is found."""
    kept = auditor.keep("kept", scene.late["checkpoint"])
    for seed in seeds:
        code, text = auditor.check(tampered(scene, random.Random(seed)), f"--previous={kept}")
        assert code == 1, (seed, text)


class TestMutants:
    """T7: 10,000 mutants in the long run, all caught given one earlier checkpoint."""

    def test_some_in_every_run(self, scene: Scene, auditor: Auditor) -> None:
        check_mutants(scene, auditor, range(150))

    @pytest.mark.slow
    @pytest.mark.timeout(7200)
    def test_ten_thousand(self, scene: Scene, auditor: Auditor) -> None:
        check_mutants(scene, auditor, range(150, 10_150))


class TestPolicyFile:
    @pytest.mark.parametrize(
        "change",
        [
            {"quorum": 3},
            {"log_key": "short"},
            {"format": "other"},
            {"witnesses": ["nonsense"]},
            {"extra": 1},
            {"previous_required": 1},
        ],
    )
    def test_a_policy_that_says_something_else_is_wrong_use(
        self, scene: Scene, auditor: Auditor, change: dict[str, Any]
    ) -> None:
        told = json.loads(scene.policy.read_text()) | change
        path = auditor.keep("bad.json", json.dumps(told).encode())
        code, text = auditor.check(scene.late, policy=path)
        assert (code, "not a policy" in text) == (2, True), text

    def test_pinned_stewards_may_stand_in_the_policy(self, scene: Scene, auditor: Auditor) -> None:
        told = json.loads(scene.policy.read_text()) | {"steward_keys": ["ab" * 32]}
        path = auditor.keep("pinned.json", json.dumps(told).encode())
        code, text = auditor.check(scene.late, policy=path)
        assert (code, "did not pin" in text) == (1, True), text

    def test_the_command_writes_one_the_verifier_reads(
        self, scene: Scene, auditor: Auditor
    ) -> None:
        out = auditor.folder / "policy.json"
        vkeys = json.loads(scene.policy.read_text())["witnesses"]
        listed = "".join(f"{vkey} https://witness.example\n" for vkey in vkeys)
        known = auditor.keep("witnesses", listed.encode())
        environment = {"RLDP_WITNESSES": str(known), "RLDP_WITNESS_QUORUM": "2"}
        arguments = ["ledger", "policy", "--out", str(out), "--data-dir", str(scene.folder)]
        assert CliRunner().invoke(app, arguments, env=environment).exit_code == 0
        code, text = auditor.check(scene.late, policy=out)
        assert code == 0, text


class TestOwnArithmetic:
    """The verifier's tree arithmetic, against the recursive definition (T6)."""

    def test_inclusion(self) -> None:
        check_inclusions(verifier.includes)

    def test_consistency(self) -> None:
        check_consistencies(verifier.extends)

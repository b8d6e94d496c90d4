"""T7 for what two people sign, keys and erasures: every mutant is caught, given one checkpoint.

The operator holds the database and the log's keys. The auditor holds the policy and the
newest checkpoint that was shown.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.database import Database
from service.ledger import disclosures, releases
from service.ledger.disclosures import Vault
from service.ledger.keys import LedgerKeys, load_keys
from service.settings import Settings
from tests.deploy.test_verify_evidence import Files, files_of, pack, rechain, resign, with_entries
from tests.deploy.test_verify_ledger import canonical, verifier
from tests.service.ledger import world as w
from tests.service.ledger.test_fsck_evidence import places, propose
from tests.service.ledger.test_recovery import recovered

Body = dict[str, Any]
TYPES = (
    *("grant.proposed", "grant.approved", "grant.rejected", "grant.effective"),
    *("release.requested", "release.approved", "release.rejected", "release.published"),
    *("backup.restored", "restore.approved", "correction", "restore.effective"),
    *("key.rotated", "redaction"),
)
# Without any checkpoint, what a change of these says is given away by a signature or a rule.
SIGNED = tuple(kind for kind in TYPES if kind not in ("redaction", "grant.rejected"))
RECOVERY = 1


@dataclass(frozen=True)
class Scene:
    """A log with every type concerned, its keys, and what an auditor holds."""

    files: Files
    policy: Path
    keys: LedgerKeys
    lines: tuple[bytes, ...]
    places: dict[str, list[int]]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("mutants")
    settings = Settings(data_dir=folder)
    with w.sqlite_database(folder) as db:
        after = recovered(folder, db, rotated_before=True)
        world = after.world
        w.grant(world, world.population, "12")
        w.decide(world, w.propose(world, world.population, "30"), world.second, "reject")
        released(world, w.run_job(world, run_plan=w.plan(mode="adaptive_sigma")))
        for epsilon in ("31", "32"):
            propose(world, epsilon, settings)
        redact(world, db)
        after.turn()
        keys = load_keys(settings)
        files = files_of(world, keys, vault=Vault(settings.keys_dir, make=False))
        lines = tuple(files["entries.jsonl"].splitlines())
        found: dict[str, list[int]] = {kind: [] for kind in TYPES}
        for index, line in enumerate(lines):
            found.get(json.loads(line)["type"], []).append(index)
        assert all(found.values()), found
        yield Scene(files, after.policy("second.json"), keys, lines, found)


def released(world: w.World, job: str) -> None:
    """Refused once, then let out."""
    with world.db.transaction() as session:
        made = releases.request_release(
            session, tenant_id=world.tenant, actor=world.proposer, job_id=job
        )
        shown = releases.release_to_dict(session, made)
    with world.db.transaction() as session:
        releases.decide(
            session,
            tenant_id=world.tenant,
            release_id=shown["id"],
            approver=world.second,
            decision="reject",
            signature=world.sign(world.second, shown["entry"], "reject"),
        )
    w.publish(world, job)


def redact(world: w.World, db: Database) -> None:
    log_id, idx = places(db)[0]
    with db.transaction() as session:
        disclosures.redact(
            session,
            tenant_id=world.tenant,
            actor=world.proposer,
            log_id=log_id,
            idx=idx,
            path="justification",
            ground="gdpr_17_1_b",
        )


class Auditor:
    def __init__(self, scene: Scene, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.scene, self.folder, self.capsys = scene, folder, capsys
        (folder / "kept").write_bytes(scene.files["checkpoint"])

    def check(self, files: Files, *options: str) -> tuple[int, str]:
        path = pack(files, self.folder / "b.zip")
        code = verifier.main([str(path), *options])
        told = self.capsys.readouterr()
        return code, told.out + told.err

    def with_checkpoint(self, files: Files) -> tuple[int, str]:
        kept = f"--previous={self.folder / 'kept'}"
        return self.check(files, f"--policy={self.scene.policy}", kept)


@pytest.fixture
def auditor(scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Auditor:
    return Auditor(scene, tmp_path, capsys)


def leaves_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all plain values inside."""
    if isinstance(value, dict):
        return [p for key, one in value.items() for p in leaves_of(one, (*path, key))]
    if isinstance(value, list):
        return [p for key, one in enumerate(value) for p in leaves_of(one, (*path, key))]
    return [path]


def other(value: Any, dice: random.Random) -> Any:
    """Another value of the same kind, as near as can be."""
    if isinstance(value, int):
        return value + dice.choice([-1, 1]) if value else 1
    if value is None:
        return "x"
    at = dice.randrange(len(value))
    group = next(
        (g for g in ("0123456789", "abcdef", "ghijklmnopqrstuvwxyz") if value[at] in g),
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    )
    return value[:at] + dice.choice(group.replace(value[at], "")) + value[at + 1 :]


def changed_field(body: Body, dice: random.Random) -> Body:
    made: Body = json.loads(canonical(body))
    *inside, last = dice.choice(leaves_of(made["data"]))
    place = made["data"]
    for step in inside:
        place = place[step]
    place[last] = other(place[last], dice)
    return made


def changed_frame(body: Body, dice: random.Random) -> Body:
    name = dice.choice(["actor", "idem", "pop", "ts", "v"])
    return {**body, name: other(body[name], dice)}


def of_another_type(body: Body, dice: random.Random) -> Body:
    return {**body, "type": dice.choice([kind for kind in TYPES if kind != body["type"]])}


EDITS: tuple[Callable[[Body, random.Random], Body], ...] = (
    changed_field,
    changed_frame,
    of_another_type,
)


def moved_signature(scene: Scene, lines: list[bytes], dice: random.Random) -> list[bytes]:
    """A decision carries the signature, or the name, that another was made with."""
    kinds = [k for k in TYPES if k.endswith((".approved", ".rejected"))]
    indexes = [i for kind in kinds for i in scene.places[kind]]
    here, there = dice.sample(indexes, 2)
    body, source = json.loads(lines[here]), json.loads(lines[there])
    if dice.random() < 0.5 and body["actor"] != source["actor"]:
        body["actor"] = source["actor"]
    else:
        body["data"]["signature"] = source["data"]["signature"]
    lines[here] = canonical(body).encode()
    return lines


def tampered(scene: Scene, dice: random.Random) -> Files:
    """One random act on an entry of a random type; re-hashed and re-signed as the dice fall."""
    lines, kind = list(scene.lines), dice.choice(TYPES)
    place = dice.choice(scene.places[kind])
    act = dice.choice(["edit", "edit", "edit", "drop", "double", "swap", "move", "signature"])
    if act == "edit":
        body = dice.choice(EDITS)(json.loads(lines[place]), dice)
        lines[place] = canonical(body).encode()
    elif act == "drop":
        del lines[place]
    elif act == "double":
        lines.insert(dice.randrange(place + 1, len(lines) + 1), lines[place])
    elif act == "swap":
        lines[place - 1], lines[place] = lines[place], lines[place - 1]
    elif act == "move":
        line = lines.pop(place)
        lines.insert(dice.choice([i for i in range(1, len(lines) + 1) if i != place]), line)
    else:
        lines = moved_signature(scene, lines, dice)
    if dice.random() < 0.8:
        lines = rechain(lines)
    made = with_entries(scene.files, lines)
    assert made != scene.files
    return resign(made, scene.keys, recovery=RECOVERY) if dice.random() < 0.6 else made


def check_mutants(scene: Scene, auditor: Auditor, seeds: range) -> None:
    for seed in seeds:
        code, text = auditor.with_checkpoint(tampered(scene, random.Random(seed)))
        assert code == 1, (seed, text)


class TestMutants:
    def test_the_log_itself_passes(self, scene: Scene, auditor: Auditor) -> None:
        code, text = auditor.with_checkpoint(scene.files)
        assert code == 0, text

    def test_some_in_every_run(self, scene: Scene, auditor: Auditor) -> None:
        check_mutants(scene, auditor, range(60))

    @pytest.mark.ci
    def test_a_thousand(self, scene: Scene, auditor: Auditor) -> None:
        check_mutants(scene, auditor, range(60, 1_060))

    @pytest.mark.slow
    @pytest.mark.timeout(7200)
    def test_ten_thousand(self, scene: Scene, auditor: Auditor) -> None:
        check_mutants(scene, auditor, range(1_060, 11_060))


class TestWithoutACheckpoint:
    """A changed field of what was signed is found from the entries alone."""

    @pytest.mark.parametrize("kind", SIGNED)
    def test_a_changed_field_breaks_a_signature_or_a_rule(
        self, scene: Scene, auditor: Auditor, kind: str
    ) -> None:
        names = ("manifest.json", "entries.jsonl", "settings.jsonl")
        bare = {name: scene.files[name] for name in names}
        for seed in range(4):
            dice, lines = random.Random(f"{kind}{seed}"), list(scene.lines)
            place = dice.choice(scene.places[kind])
            lines[place] = canonical(changed_field(json.loads(lines[place]), dice)).encode()
            code, text = auditor.check(with_entries(bare, rechain(lines)))
            assert code == 1, (seed, place, text)

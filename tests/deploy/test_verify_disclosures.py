"""The verifier on personal values: shown, erased, and what a dishonest operator makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.ledger import disclosures, grants
from service.ledger.disclosures import Vault
from service.ledger.keys import load_keys
from service.ledger.publisher import make_publisher
from service.settings import Settings
from tests.deploy.test_verify_evidence import Files, files_of, pack, rechain, with_entries
from tests.deploy.test_verify_ledger import canonical, verifier
from tests.service.ledger import world as w

Body = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """A log in which one of two justifications was erased; before it, and after."""

    before: Files
    after: Files
    kept: int
    erased: int


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("disclosures")
    keys, vault = load_keys(Settings(data_dir=folder)), Vault(folder / "keys", make=True)
    with w.sqlite_database(folder) as db:
        world = w.open_world(db)
        publisher = make_publisher(Settings(data_dir=folder), db)
        asked = [ask(world, vault, epsilon) for epsilon in ("9", "10")]
        publisher.turn()
        before = files_of(world, keys, vault=vault)
        with db.transaction() as session:
            disclosures.redact(
                session,
                tenant_id=world.tenant,
                actor=world.proposer,
                log_id=asked[1].log_id,
                idx=asked[1].idx,
                path="justification",
                ground="gdpr_17_1_a",
            )
        publisher.turn()
        after = files_of(world, keys, vault=vault)
    yield Scene(before=before, after=after, kept=asked[0].idx, erased=asked[1].idx)


def ask(world: w.World, vault: Vault, epsilon: str) -> Any:
    with world.db.transaction() as session:
        return grants.propose(
            session,
            tenant_id=world.tenant,
            actor=world.proposer,
            request=grants.GrantRequest(
                population_id=world.population,
                epsilon=epsilon,
                delta=None,
                alpha_star=None,
                reason_code="study_extension",
                justification=f"Für Frau Beispiel, {epsilon}",
            ),
            vault=vault,
        )


def bare(files: Files) -> Files:
    """Without signed evidence: what is left must stand by the entries alone."""
    names = ("manifest.json", "entries.jsonl", "settings.jsonl", "disclosures.jsonl")
    return {name: files[name] for name in names if name in files}


def check(files: Files, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = verifier.main([str(pack(files, folder / "bundle.zip"))])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def edited(files: Files, index: int, change: Callable[[Body], object]) -> Files:
    lines = files["entries.jsonl"].splitlines()
    body = json.loads(lines[index])
    change(body)
    lines[index] = canonical(body).encode()
    return with_entries(files, rechain(lines))


def with_line(files: Files, change: Callable[[Body], object]) -> Files:
    told = json.loads(files["disclosures.jsonl"].splitlines()[0])
    change(told)
    return files | {"disclosures.jsonl": canonical(told).encode() + b"\n"}


def last(files: Files) -> int:
    return len(files["entries.jsonl"].splitlines()) - 1


class TestHonest:
    def test_shown_values_are_checked_and_erased_ones_not_missed(
        self, scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for files, shown in ((scene.before, 2), (scene.after, 1)):
            path = pack(files, tmp_path / "b.zip")
            assert verifier.main([str(path), "--json"]) == 0
            result = json.loads(capsys.readouterr().out)
            assert (result["disclosures"], result["redactions"]) == (shown, 2 - shown)

    def test_a_bundle_without_the_file_passes(
        self, scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        files = {k: v for k, v in scene.after.items() if k != "disclosures.jsonl"}
        assert check(files, tmp_path, capsys)[0] == 0

    def test_a_value_neither_shown_nor_redacted_stays_open(
        self, scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, text = check(scene.before | {"disclosures.jsonl": b""}, tmp_path, capsys)
        assert code == 3
        assert f"entry {scene.kept}: neither shown nor redacted" in text


SHOWN: dict[str, tuple[Callable[[Body], object], str]] = {
    "another text": (lambda t: t.update(value="Something else"), "not what the entry commits to"),
    "another salt": (lambda t: t.update(salt="0" * 32), "not what the entry commits to"),
    "of an entry without one": (lambda t: t.update(idx=0), "no entry commits to"),
    "under another name": (lambda t: t.update(path="name"), "no entry commits to"),
    "with a field more": (lambda t: t.update(more=1), "unknown field"),
    "with a number for a text": (lambda t: t.update(value=7), "is no text"),
    "with a short salt": (lambda t: t.update(salt="00"), "is no salt"),
}
REDACTIONS: dict[str, tuple[Callable[[Body], object], str]] = {
    "of nothing": (lambda b: b["data"].update(entry=0), "discloses nothing"),
    "of a later entry": (lambda b: b["data"].update(entry=10_000), "discloses nothing"),
    "of another name": (lambda b: b["data"].update(path="name"), "discloses nothing"),
    "on no ground": (lambda b: b["data"].update(ground="because"), "no legal ground"),
    "in another population's name": (lambda b: b.update(pop=None), "another population"),
    "that moves an amount": (
        lambda b: b.update(post=[["budget", "1"], ["issuance", "-1"]]),
        "postings do not follow",
    ),
    "of another version": (lambda b: b.update(v=2), "unknown type or version"),
    "with free text": (lambda b: b["data"].update(note="x"), "unknown field"),
}


class TestTampering:
    @pytest.mark.parametrize("name", SHOWN)
    def test_a_false_disclosure_is_found(
        self, scene: Scene, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        change, told = SHOWN[name]
        code, text = check(with_line(scene.after, change), tmp_path, capsys)
        assert (code, told in text) == (1, True), text

    @pytest.mark.parametrize("name", REDACTIONS)
    def test_a_false_redaction_is_found(
        self, scene: Scene, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        change, told = REDACTIONS[name]
        index = last(scene.after)
        code, text = check(edited(bare(scene.after), index, change), tmp_path, capsys)
        assert (code, told in text, f"entry {index}" in text) == (1, True, True), text

    def test_a_value_that_survived_its_redaction_is_found(
        self, scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        forged = scene.after | {"disclosures.jsonl": scene.before["disclosures.jsonl"]}
        code, text = check(forged, tmp_path, capsys)
        assert (code, "after its redaction" in text) == (1, True), text
        assert f"entry {scene.erased}" in text

    def test_a_second_redaction_and_a_second_showing_are_found(
        self, scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lines = scene.after["entries.jsonl"].splitlines()
        again = json.loads(lines[-1]) | {"idem": "other"}
        twice = with_entries(bare(scene.after), rechain([*lines, canonical(again).encode()]))
        assert "redacted twice" in check(twice, tmp_path, capsys)[1]
        line = scene.after["disclosures.jsonl"]
        forged = scene.after | {"disclosures.jsonl": line + line}
        assert "one disclosure twice" in check(forged, tmp_path, capsys)[1]

    def test_another_commitment_under_the_same_root_is_found(
        self, scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        change = {"justification": "ab" * 32}
        forged = edited(scene.after, scene.kept, lambda body: body["data"].update(disclosed=change))
        assert check(forged, tmp_path, capsys)[0] == 1

"""The standalone verifier: clean bundles pass, every kind of tampering is found (ledger.md 12)."""

from __future__ import annotations

import ast
import base64
import hashlib
import importlib.util
import json
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from dp_core import accounting
from dp_core.errors import CalibrationImpossible
from dp_core.events import PoissonGaussian
from service.ledger import bundle
from service.ledger.publisher import make_publisher
from service.settings import Settings
from tests.service.ledger import world as w

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "verifier" / "verify_ledger.py"
STANDARD = set(sys.stdlib_module_names)


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_ledger", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["verify_ledger"] = module
    spec.loader.exec_module(module)
    return module


verifier = load()
Body = dict[str, Any]


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class Parts:
    """The files of a bundle, taken apart for tampering."""

    entries: list[str]
    settings: list[str]
    certificates: dict[str, str]
    stewards: dict[str, Ed25519PrivateKey]

    def bodies(self) -> list[Body]:
        return [json.loads(line) for line in self.entries]

    def find(self, kind: str, nth: int = 0) -> int:
        return [b["idx"] for b in self.bodies() if b["type"] == kind][nth]

    def rechained(self, bodies: list[Body]) -> Parts:
        """As a dishonest operator would write the log anew: all hashes fit again."""
        lines, prev = [], "0" * 64
        for index, body in enumerate(bodies):
            line = canonical({**body, "idx": index, "prev": prev})
            prev = hashlib.sha256(b"\x00" + line.encode()).hexdigest()
            lines.append(line)
        return replace(self, entries=lines)

    def edited(self, index: int, change: Callable[[Body], None]) -> Parts:
        bodies = self.bodies()
        change(bodies[index])
        return self.rechained(bodies)

    def leaves(self) -> list[str]:
        return [hashlib.sha256(b"\x00" + line.encode()).hexdigest() for line in self.entries]

    def write(self, path: Path) -> Path:
        """Packs everything with a manifest that fits."""
        files = {
            "entries.jsonl": "".join(line + "\n" for line in self.entries),
            "settings.jsonl": "".join(line + "\n" for line in self.settings),
        }
        for job, text in self.certificates.items():
            files[f"certificates/{job}.json"] = text + "\n"
        try:
            log = json.loads(self.entries[0])["log"]
        except (IndexError, ValueError, TypeError, KeyError):
            log = ""
        manifest = {
            "format": "dp-ledger-bundle/1",
            "files": {n: hashlib.sha256(t.encode()).hexdigest() for n, t in files.items()},
            "log": log,
            "origin": "",
            "root": verifier.merkle_root(self.leaves()),
            "size": len(self.entries),
        }
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
            archive.writestr("manifest.json", json.dumps(manifest))
        return path


def take_apart(path: Path, world: w.World) -> Parts:
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if n.startswith("certificates/")]
        sealed = {n: json.loads(archive.read(n))["payload"] for n in names}
        return Parts(
            entries=archive.read("entries.jsonl").decode().splitlines(),
            settings=archive.read("settings.jsonl").decode().splitlines(),
            certificates={
                Path(n).name.removesuffix(".dsse.json"): base64.b64decode(sealed[n]).decode()
                for n in names
            },
            stewards=world.stewards,
        )


@pytest.fixture(scope="module")
def clean_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, w.World]]:
    """A bundle with both rules, a crash, validation queries, a refusal and a release."""
    directory = tmp_path_factory.mktemp("ledger")
    with w.sqlite_database(directory) as db:
        world = w.open_world(db, validation_fraction="0.1")
        job = w.run_job(world, run_plan=w.plan(validation=True), crash=True)
        w.publish(world, job)
        w.run_job(world, run_plan=w.plan(mode="adaptive_sigma"))
        with db.transaction() as session:
            w.ledger.record_refusal(
                session,
                tenant_id=world.tenant,
                actor=world.submitter,
                population_id=world.population,
                job_reference="x",
                needed_pico=9,
                free_pico=8,
            )
        yield exported(world, directory), world


def exported(world: w.World, directory: Path) -> Path:
    """The world's log as an auditor downloads it."""
    publisher = make_publisher(Settings(data_dir=directory), world.db)
    publisher.turn()
    path = directory / "bundle.zip"
    with (
        world.db.reading() as session,
        bundle.write_bundle(session, keys=publisher.keys, tenant_id=world.tenant) as archive,
    ):
        path.write_bytes(archive.read())
    return path


@pytest.fixture(scope="module")
def scheduled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Parts]]:
    """A job of fixed noise in two levels that lost its first window."""
    directory = tmp_path_factory.mktemp("scheduled")
    with w.sqlite_database(directory) as db:
        world = w.open_world(db)
        run_plan = w.plan(schedule=(("1.000", 20), ("0.900", 20)))
        w.run_job(world, run_plan=run_plan, windows=3, crash=True)
        path = exported(world, directory)
        yield path, take_apart(path, world)


@pytest.fixture(scope="module")
def clean(clean_path: tuple[Path, w.World]) -> Parts:
    return take_apart(*clean_path)


def run(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    code = verifier.main([str(path), *options])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


# What a certificate says of an audit; the digests are those of the test job's artifacts.
AUDIT = {
    "report_sha256": "c" * 64,
    "scores_sha256": "d" * 64,
    "self_test": "PASS",
    "tier": "T1",
    "verdict": "INCONCLUSIVE",
}


class TestCleanBundle:
    def test_passes_and_counts_what_was_recomputed(
        self, clean_path: tuple[Path, w.World], capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, text = run(clean_path[0], capsys)
        assert code == 0, text
        assert text.startswith("OK ")
        assert "2 jobs recomputed, 2 epsilons by PLD, 0 pico off, 0 invariant breaks" in text

    def test_runs_as_a_single_file_elsewhere(
        self, clean_path: tuple[Path, w.World], tmp_path: Path
    ) -> None:
        copy = tmp_path / "verify_ledger.py"
        copy.write_bytes(SCRIPT.read_bytes())
        done = subprocess.run(
            [sys.executable, "-I", str(copy), str(clean_path[0]), "--json"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert (result["verdict"], result["pico_off"], result["jobs"]) == ("ok", 0, 2)

    def test_repacked_unchanged_it_still_passes(
        self, clean: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        again = clean.rechained(clean.bodies())
        assert again == clean
        assert run(again.write(tmp_path / "b.zip"), capsys)[0] == 0

    def test_known_keys_earlier_root_and_artifacts_are_accepted(
        self, clean: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = clean.write(tmp_path / "b.zip")
        options = [f"--previous=9:{verifier.merkle_root(clean.leaves()[:9])}"]
        for key in clean.stewards.values():
            options.append(f"--steward-key={key.public_key().public_bytes_raw().hex()}")
        code, text = run(path, capsys, *options)
        assert (code, "consistent with 9" in text) == (0, True), text

    def test_without_dp_accounting_the_pld_claim_is_not_established(
        self,
        clean_path: tuple[Path, w.World],
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setitem(sys.modules, "dp_accounting", None)
        code, text = run(clean_path[0], capsys)
        assert code == 3
        assert text.startswith("INCOMPLETE")
        assert "dp-accounting is not installed" in text


class TestWrongUse:
    @pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04broken"])
    def test_what_is_no_bundle_exits_2(
        self, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "x.zip"
        path.write_bytes(content)
        code, text = run(path, capsys)
        assert (code, text.startswith("UNREADABLE")) == (2, True)

    def test_a_missing_file_and_a_bad_option_exit_2(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(tmp_path / "none.zip", capsys)[0] == 2
        with pytest.raises(SystemExit) as left:
            verifier.main(["x.zip", "--previous", "nonsense"])
        assert left.value.code == 2

    def test_help_says_what_the_exit_codes_mean(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            verifier.main(["--help"])
        text = capsys.readouterr().out
        assert "Exit codes: 0" in text
        assert "--steward-key" in text


def one_step_cheaper(body: Body) -> None:
    cost = int(body["data"]["charge"]) - 363154049
    body["data"]["charge"] = str(cost)
    body["post"] = [[body["post"][0][0], str(-cost)], [body["post"][1][0], str(cost)]]


def one_pico_cheaper(body: Body) -> None:
    cost = int(body["data"]["charge"]) - 1
    body["data"]["charge"] = str(cost)
    body["post"] = [[body["post"][0][0], str(-cost)], [body["post"][1][0], str(cost)]]


def refund(body: Body) -> None:
    for posting in body["post"]:
        sign = -1 if posting[1].startswith("-") else 1
        posting[1] = str(int(posting[1]) + sign * 363154049)


def put(*path: str | int, to: Any) -> Callable[[Body], None]:
    """A change that sets one value inside a body."""

    def change(body: Body) -> None:
        place: Any = body
        for step in path[:-1]:
            place = place[step]
        assert place[path[-1]] != to
        place[path[-1]] = to

    return change


class TestDishonestService:
    """The log is written anew with fitting hashes; only the content is wrong."""

    @pytest.mark.parametrize(
        ("kind", "change", "problem"),
        [
            ("window.charge", one_step_cheaper, "-363154049"),
            ("window.charge", one_pico_cheaper, "-1"),
            ("window.charge", put("data", "window", to=3), "window 0 expected"),
            ("window.charge", put("data", "epoch", to=7), "latest attempt"),
            ("window.charge", put("data", "level", to="9.000"), "outside the menu"),
            ("window.charge", put("data", "q", to="0.001"), "sampling rate"),
            ("window.charge", put("data", "steps", to=9), "pico where"),
            ("window.charge", put("data", "steps", to=99), "steps of the window"),
            ("window.charge", put("data", "first_step", to=5), "skipped"),
            ("window.charge", put("data", "inputs", to="raw"), "not public or dp"),
            ("window.charge", put("data", "settings", to="0" * 64), "settings are missing"),
            ("window.charge", put("actor", to="wk_other"), "another worker"),
            ("window.charge", put("data", "job_charge", to="1"), "pico where"),
            ("window.done", put("data", "steps_run", to=11), "more steps than charged"),
            ("window.done", put("data", "window", to=5), "not open"),
            ("window.abandoned", put("data", "epoch", to=1), "older attempt"),
            ("query.charge", put("data", "query", to=4), "query 0 expected"),
            ("query.charge", put("data", "scale", to="5.9"), "less noise"),
            ("query.charge", put("data", "block", to="train"), "outside the validation"),
            ("settle", refund, "do not follow"),
            ("settle", put("data", "returned", "train", to="1"), "returned amount"),
            ("settle", put("data", "windows", "done", to=3), "counted wrongly"),
            ("settle", put("data", "job_spent", to="0"), "job_spent"),
            ("reserve", put("data", "blocks", 0, "levels", 0, "step_pico", to="1"), "pico where"),
            ("reserve", put("data", "blocks", 0, "levels", 0, "prices", 3, to="1"), "by order"),
            ("reserve", put("data", "blocks", 0, "amount", to="1"), "pico where"),
            ("reserve", put("data", "alpha_star", to=5), "population's order"),
            ("reserve", put("data", "delta", to="1e-5"), "delta above"),
            ("reserve", put("data", "job_limit", to="41"), "schedule"),
            ("reserve", put("data", "sampler", to="shuffle"), "without accounting"),
            ("reserve", put("data", "patients_public", to=200_000), "too many patients"),
            ("attempt.started", put("data", "epoch", to=0), "does not grow"),
            ("reserve.refused", put("data", "needed", to="8"), "although it fits"),
            ("grant.proposed", put("data", "limit", to="9144610006836"), "pico where"),
            ("grant.proposed", put("data", "delta", to="1e-4"), "1/patients"),
            ("grant.proposed", put("data", "amount", to="1"), "amount is not"),
            ("grant.effective", put("data", "limit", to="9144610006836"), "not as proposed"),
            ("grant.effective", put("data", "delta", to="1e-7"), "not as proposed"),
            ("release.published", put("data", "certificate", to="0" * 64), "not as requested"),
            ("release.requested", put("data", "certificate", to="0" * 64), "not the artifacts"),
            ("population.registered", put("data", "blocks", to=["train"]), "blocks"),
            ("log.opened", put("data", "origin", to="x/y"), "origin"),
            ("principal.registered", put("data", "role", to="admin"), "only stewards"),
            ("settle", put("type", to="settle.v2"), "unknown type"),
            ("settle", put("v", to=2), "version"),
            ("settle", put("ts", to="2001-01-01T00:00Z"), "time falls"),
            ("settle", put("ts", to="yesterday"), "UTC minute"),
            ("settle", put("log", to="tn_b/2026"), "another log"),
            ("settle", put("idem", to="open"), "idem"),
            ("settle", put("pop", to="pop_other"), "unknown population"),
            ("settle", lambda body: body["data"].update(extra=1), "unknown field"),
            ("settle", lambda body: body["data"].pop("state"), "lacks state"),
        ],
    )
    def test_is_caught_at_the_entry_that_lies(
        self,
        clean: Parts,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        kind: str,
        change: Callable[[Body], None],
        problem: str,
    ) -> None:
        index = clean.find(kind)
        code, text = run(clean.edited(index, change).write(tmp_path / "b.zip"), capsys)
        assert code == 1
        assert problem in text
        assert f"at entry {index}:" in text

    def test_weaker_noise_than_charged_is_caught_from_the_settings(
        self, clean: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        weak = json.loads(clean.settings[0])
        weak["groups"][0]["std"] = "0.4999999999999999999"
        text = canonical(weak)
        digest, old = (hashlib.sha256(t.encode()).hexdigest() for t in (text, clean.settings[0]))
        bodies = [json.loads(line.replace(old, digest)) for line in clean.entries]
        forged = replace(clean.rechained(bodies), settings=[text, *clean.settings[1:]])
        code, said = run(forged.write(tmp_path / "b.zip"), capsys)
        assert (code, "less noise than the charged level" in said) == (1, True), said

    def test_settings_that_differ_from_their_digest_are_missing(
        self, clean: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        changed = [clean.settings[0].replace('"0.5"', '"0.6"'), *clean.settings[1:]]
        code, text = run(replace(clean, settings=changed).write(tmp_path / "b.zip"), capsys)
        assert (code, "settings are missing" in text) == (1, True), text

    def test_a_charge_left_out_of_the_log_is_a_gap_in_the_windows(
        self, clean: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bodies = clean.bodies()
        del bodies[clean.find("window.charge", 0)]
        code, text = run(clean.rechained(bodies).write(tmp_path / "b.zip"), capsys)
        assert (code, "not open" in text) == (1, True), text

    @pytest.mark.parametrize("kind", ["reserve", "settle"])
    def test_a_second_reserve_or_settle_is_caught(
        self, clean: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
    ) -> None:
        bodies = clean.bodies()
        bodies.append({**bodies[clean.find(kind)], "idem": "again", "ts": bodies[-1]["ts"]})
        code, text = run(clean.rechained(bodies).write(tmp_path / "b.zip"), capsys)
        assert (code, "after settle (I6)" in text) == (1, True), text


def other_parts(*parts: tuple[str, int]) -> Callable[[Body], None]:
    return put("data", "schedule", to=[{"level": x, "steps": n} for x, n in parts])


class TestSchedule:
    """Fixed noise that changes: registered, charged in its place, certified as a whole."""

    def test_an_honest_one_passes(
        self, scheduled: tuple[Path, Parts], capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, text = run(scheduled[0], capsys)
        assert code == 0, text
        assert "1 epsilons by PLD" in text
        levels = [
            body["data"]["level"]
            for body in scheduled[1].bodies()
            if body["type"] == "window.charge"
        ]
        assert levels == ["1.000", "1.000", "0.900", "0.900"]

    @pytest.mark.parametrize(
        ("kind", "nth", "change", "problem"),
        [
            ("reserve", 0, other_parts(("1.000", 20), ("0.900", 19)), "schedule"),
            ("reserve", 0, other_parts(("1.000", 40)), "schedule"),
            ("reserve", 0, other_parts(("1.000", 40), ("0.900", 0)), "schedule"),
            ("reserve", 0, other_parts(), "schedule"),
            ("reserve", 0, other_parts(("1.000", 30), ("0.900", 10)), "pico where"),
            ("reserve", 0, put("data", "schedule", to=None), "schedule"),
            ("window.charge", 0, put("data", "level", to="0.900"), "than the schedule's"),
            ("window.charge", 1, put("data", "level", to="0.900"), "than the schedule's"),
            ("window.charge", 2, put("data", "level", to="1.000"), "than the schedule's"),
        ],
    )
    def test_another_schedule_or_place_is_caught(
        self,
        scheduled: tuple[Path, Parts],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        kind: str,
        nth: int,
        change: Callable[[Body], None],
        problem: str,
    ) -> None:
        parts = scheduled[1]
        index = parts.find(kind, nth)
        code, text = run(parts.edited(index, change).write(tmp_path / "b.zip"), capsys)
        assert (code, problem in text) == (1, True), text
        assert f"at entry {index}:" in text

    def test_the_order_of_its_levels_is_that_of_the_charges(
        self, scheduled: tuple[Path, Parts], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The same price in another order: the first charge does not fit it."""
        parts = scheduled[1]
        turned = parts.edited(parts.find("reserve"), other_parts(("0.900", 20), ("1.000", 20)))
        code, text = run(turned.write(tmp_path / "b.zip"), capsys)
        assert (code, "than the schedule's" in text) == (1, True), text

    def test_its_epsilon_is_that_of_all_parts_together(self) -> None:
        parts = (("1.000", 20), ("0.900", 20))
        events = [PoissonGaussian(q="0.01", noise_multiplier=level, steps=n) for level, n in parts]
        whole = accounting.pld_epsilon(events, "1e-6")
        alone = max((accounting.pld_epsilon([e], "1e-6") for e in events), key=float)
        assert float(alone) < float(whole)
        assert verifier.check_schedules([("job", "0.01", parts, "1e-6", whole)]) == 1
        with pytest.raises(verifier.Failed, match=f"the PLD gives {whole}"):
            verifier.check_schedules([("job", "0.01", parts, "1e-6", alone)])


class TestForgedApprovals:
    def forge(self, clean: Parts, kind: str, signature: str, actor: str | None = None) -> Parts:
        bodies = clean.bodies()
        index = clean.find(kind, 1)
        bodies[index]["data"]["signature"] = signature
        bodies[index]["actor"] = actor or bodies[index]["actor"]
        return clean.rechained(bodies)

    @pytest.mark.parametrize("kind", ["grant.approved", "release.approved"])
    def test_a_signature_by_another_key_does_not_fit(
        self, clean: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
    ) -> None:
        text = b"dp-ledger-approval/v1\nanything\n"
        forged = base64.b64encode(Ed25519PrivateKey.generate().sign(text)).decode()
        code, said = run(self.forge(clean, kind, forged).write(tmp_path / "b.zip"), capsys)
        assert (code, "the signature does not fit" in said) == (1, True), said

    def test_one_person_cannot_sign_twice(
        self, clean: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        first = clean.bodies()[clean.find("grant.approved", 0)]
        forged = self.forge(clean, "grant.approved", first["data"]["signature"], first["actor"])
        code, said = run(forged.write(tmp_path / "b.zip"), capsys)
        assert (code, "signed twice by one person" in said) == (1, True), said

    def test_one_approval_is_not_two_people(
        self, clean: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bodies = clean.bodies()
        effective = bodies[clean.find("grant.effective")]
        effective["data"]["approvals"] = effective["data"]["approvals"][:1]
        del bodies[clean.find("grant.approved", 1)]
        effective["data"]["approvals"] = [
            a
            for a in clean.bodies()[clean.find("grant.effective")]["data"]["approvals"]
            if a["approver"] == bodies[clean.find("grant.approved", 0)]["actor"]
        ]
        code, said = run(clean.rechained(bodies).write(tmp_path / "b.zip"), capsys)
        assert (code, "not two people" in said) == (1, True), said

    def test_a_steward_added_later_is_caught(
        self, clean: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bodies = clean.bodies()
        key = Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()
        data = {"key": key, "principal": "usr_new", "role": "steward"}
        added = {**bodies[1], "data": data, "idem": "usr_new/registered", "ts": bodies[-1]["ts"]}
        code, said = run(clean.rechained([*bodies, added]).write(tmp_path / "b.zip"), capsys)
        assert (code, "without approval by another" in said) == (1, True), said

    def test_a_log_made_anew_with_own_stewards_fails_against_pinned_keys(
        self, clean: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stranger = Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()
        path = clean.write(tmp_path / "b.zip")
        code, said = run(path, capsys, f"--steward-key={stranger}")
        assert (code, "did not pin" in said) == (1, True), said


class TestArchive:
    def with_file(self, clean: Parts, path: Path, name: str, content: str) -> Path:
        clean.write(path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, content)
        return path

    def test_a_file_of_unknown_name_is_refused(
        self, clean: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = self.with_file(clean, tmp_path / "b.zip", "../../evil.json", "{}")
        code, said = run(path, capsys)
        assert (code, "unknown name" in said) == (1, True), said

    def test_content_that_differs_from_the_manifest_is_refused(
        self, clean: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        honest = clean.write(tmp_path / "a.zip")
        with zipfile.ZipFile(honest) as source:
            files = {name: source.read(name) for name in source.namelist()}
        files["settings.jsonl"] = files["settings.jsonl"].replace(b"0.5", b"0.7")
        with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        code, said = run(tmp_path / "b.zip", capsys)
        assert (code, "differs from the manifest" in said) == (1, True), said

    def test_settings_that_no_entry_names_are_refused(
        self, clean: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        extra = replace(clean, settings=[*clean.settings, canonical({"groups": [], "signals": []})])
        code, said = run(extra.write(tmp_path / "b.zip"), capsys)
        assert (code, "settings no entry names" in said) == (1, True), said


class TestRewrittenLog:
    def test_a_truncated_log_fails_against_an_earlier_root(
        self, clean: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        short = replace(clean, entries=clean.entries[:9], settings=[], certificates={})
        path = short.write(tmp_path / "b.zip")
        assert run(path, capsys)[0] == 0  # nothing inside can tell
        root = verifier.merkle_root(clean.leaves())
        code, said = run(path, capsys, f"--previous={len(clean.entries)}:{root}")
        assert (code, "rewritten" in said) == (1, True), said

    def test_a_rewritten_past_fails_against_an_earlier_root(
        self, clean: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        kept = replace(clean, entries=clean.entries[:9], settings=[], certificates={})
        other = kept.edited(8, put("ts", to="2099-01-01T00:00Z"))
        path = other.write(tmp_path / "b.zip")
        root = verifier.merkle_root(clean.leaves()[:9])
        assert run(path, capsys)[0] == 0
        assert run(path, capsys, f"--previous=9:{root}")[0] == 1


class TestCertificates:
    def forged(self, clean: Parts, epsilon: str) -> Parts:
        """The operator lowers the claimed epsilon everywhere and makes all hashes fit."""
        bodies = clean.bodies()
        reserve = bodies[clean.find("reserve")]
        job = reserve["data"]["job"]
        statement = json.loads(clean.certificates[job])
        reserve["data"]["epsilon"] = epsilon
        predicate = statement["predicate"]
        predicate["claim"]["epsilon"] = predicate["training_claim"]["epsilon"] = epsilon
        size = predicate["evidence"]["tree"]["size"]
        chained = clean.rechained(bodies)
        predicate["evidence"]["tree"]["root"] = verifier.merkle_root(chained.leaves()[:size])
        text = canonical(statement)
        bodies[clean.find("settle")]["data"]["certificate"] = hashlib.sha256(
            text.encode()
        ).hexdigest()
        settled = clean.find("settle")
        forged = clean.rechained(bodies[: settled + 1])
        return replace(forged, certificates={job: text}, settings=clean.settings[:1])

    def test_an_understated_epsilon_is_caught_by_the_pld(
        self, clean: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        honest = clean.bodies()[clean.find("reserve")]["data"]["epsilon"]
        assert run(self.forged(clean, "9.0000").write(tmp_path / "a.zip"), capsys)[0] == 0
        code, said = run(self.forged(clean, "0.5").write(tmp_path / "b.zip"), capsys)
        assert (code, f"claims epsilon 0.5, the PLD gives {honest}" in said) == (1, True), said

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            (("claim", "epsilon"), "0.1"),
            (("claim", "delta"), "1e-9"),
            (("claim", "unit"), "record"),
            (("training_claim", "epsilon"), "0.1"),
            (("training_claim", "plan_digest"), "0" * 64),
            (("steps", "started"), 1),
            (("mechanism", "sampling_probability"), "0.001"),
            (("scope", "population_limit", "epsilon"), "1"),
            (("scope", "spent_pico", "train"), "1"),
            (("scope", "overlap_with"), None),
            (("evidence", "tree", "root"), "0" * 64),
            (("evidence", "indexes", "reserve"), [1]),
            (("evidence", "attempts"), []),
            (("evidence", "empirical_audit"), {**AUDIT, "report_sha256": "0" * 64}),
            (("evidence", "empirical_audit"), {**AUDIT, "scores_sha256": "0" * 64}),
            (("evidence", "empirical_audit"), {**AUDIT, "verdict": "FAIL"}),
            (("evidence", "empirical_audit"), {**AUDIT, "self_test": "FAIL"}),
            (("evidence", "empirical_audit"), {**AUDIT, "verdict": "PASS"}),
            (("evidence", "empirical_audit"), {**AUDIT, "tier": "T2"}),
            (("evidence", "empirical_audit"), {"verdict": "PASS"}),
            (("validation", "epsilon"), "0.01"),
            (("reasons",), []),
            (("verdict",), "full"),
        ],
    )
    def test_each_number_is_held_against_the_log(
        self,
        clean: Parts,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        path: tuple[str, ...],
        value: Any,
    ) -> None:
        forged = self.changed(clean, path, value)
        code, said = run(forged.write(tmp_path / "b.zip"), capsys)
        assert (code, "certificate of" in said) == (1, True), said

    def changed(self, clean: Parts, path: tuple[str, ...], value: Any) -> Parts:
        """The first job's certificate with one other value, and a log that fits it."""
        job = clean.bodies()[clean.find("reserve")]["data"]["job"]
        statement = json.loads(clean.certificates[job])
        put("predicate", *path, to=value)(statement)
        text = canonical(statement)
        bodies = clean.bodies()[: clean.find("settle") + 1]
        bodies[-1]["data"]["certificate"] = hashlib.sha256(text.encode()).hexdigest()
        chained = clean.rechained(bodies)
        return replace(chained, certificates={job: text}, settings=clean.settings[:1])

    def test_an_audit_whose_files_are_the_jobs_is_accepted(
        self, clean: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Its words may grow: the field is read by the names the verifier knows."""
        told = self.changed(clean, ("evidence", "empirical_audit"), {**AUDIT, "steps": 5})
        code, said = run(told.write(tmp_path / "b.zip"), capsys)
        assert code == 0, said

    def test_a_missing_certificate_is_named(
        self, clean: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, said = run(replace(clean, certificates={}).write(tmp_path / "b.zip"), capsys)
        assert (code, "is missing" in said) == (1, True), said

    def test_an_artifact_of_no_job_is_refused(
        self, clean: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        artifact = tmp_path / "adapter_model.safetensors"
        artifact.write_bytes(b"another adapter")
        code, said = run(clean.write(tmp_path / "b.zip"), capsys, f"--artifact={artifact}")
        assert (code, "artifact of no settled job" in said) == (1, True), said


class TestRandomTampering:
    """T7 in small: flip, drop, swap, insert; the manifest always fits again."""

    @pytest.mark.parametrize("seed", range(120))
    def test_every_mutant_is_caught(
        self, clean: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
    ) -> None:
        mutant = mutate(clean, random.Random(seed))
        code, text = run(mutant.write(tmp_path / "b.zip"), capsys)
        assert code == 1, text


def mutate(clean: Parts, dice: random.Random) -> Parts:
    kind = dice.choice(["flip", "drop", "swap", "insert", "settings", "certificate"])
    lines = list(clean.entries)
    place = dice.randrange(len(lines) - 1)
    if kind == "flip":
        return replace(clean, entries=flip(lines, place, dice))
    if kind == "settings":
        chosen = dice.randrange(len(clean.settings))
        return replace(clean, settings=flip(list(clean.settings), chosen, dice))
    if kind == "certificate":
        job = dice.choice(sorted(clean.certificates))
        changed = flip([clean.certificates[job]], 0, dice)[0]
        return replace(clean, certificates={**clean.certificates, job: changed})
    if kind == "drop":
        del lines[place]
    elif kind == "swap":
        lines[place], lines[place + 1] = lines[place + 1], lines[place]
    else:
        lines.insert(place + 1, lines[dice.randrange(len(lines))])
    return replace(clean, entries=lines)


def flip(lines: list[str], place: int, dice: random.Random) -> list[str]:
    line = lines[place]
    at = dice.randrange(len(line))
    letter = dice.choice([c for c in '0123456789abcdef",:{}[] \xe9' if c != line[at]])
    lines[place] = line[:at] + letter + line[at + 1 :]
    return lines


class TestOddJson:
    @pytest.mark.parametrize(
        "line",
        [
            b'{"a":1.0}',
            b'{"a":1e3}',
            b'{"a":NaN}',
            b'{"a":1,"a":1}',
            b'{"b":1,"a":1}',
            b'{"a": 1}',
            b'{"a":9007199254740992}',
            '{"a":"é"}'.encode(),
            b'{"a":"\\u00e9"}',
            b'{"a":-0}',
            b"[" * 5000,
        ],
    )
    def test_only_canonical_lines_are_read(self, line: bytes) -> None:
        with pytest.raises(verifier.Failed):
            verifier.parse_canonical(line)


class TestArithmetic:
    def test_shared_vectors(self, shared: Path) -> None:
        vectors = json.loads((shared / "vectors" / "accounting.json").read_text())
        for case in vectors["rdp_per_step"]:
            own = verifier.step_prices(case["q"], case["noise_multiplier"])
            assert own[case["alpha"]] == int(case["units"])
        for case in vectors["rdp_budget"]:
            own = verifier.limit_pico(case["epsilon"], case["delta"], case["alpha"])
            assert own == int(case["units"]) if case["usable"] else own <= 0

    def test_vectors_of_the_design(self) -> None:
        assert verifier.step_prices("0.01", "1")[4] == 363154049
        assert verifier.step_prices("0.01", "1")[8] == 893643908
        assert verifier.limit_pico("8", "1e-6", 4) == 4144610006836

    @settings(max_examples=25, deadline=None)
    @given(
        q=st.integers(1, 999_999).map(lambda n: f"0.{n:06d}"),
        level=st.integers(300, 20_000).map(lambda n: f"{n // 1000}.{n % 1000:03d}"),
        alpha=st.integers(2, 64),
    )
    def test_prices_equal_the_services_to_the_pico(self, q: str, level: str, alpha: int) -> None:
        assert verifier.step_prices(q, level)[alpha] == accounting.step_pico(q, level, alpha)

    @settings(max_examples=50, deadline=None)
    @given(
        epsilon=st.integers(1, 2000).map(lambda n: f"{n / 100:.2f}"),
        exponent=st.integers(4, 12),
        alpha=st.integers(2, 64),
    )
    def test_limits_equal_the_services_to_the_pico(
        self, epsilon: str, exponent: int, alpha: int
    ) -> None:
        own = verifier.limit_pico(epsilon, f"1e-{exponent}", alpha)
        try:
            assert own == accounting.limit_pico(epsilon, f"1e-{exponent}", alpha)
        except CalibrationImpossible:
            assert own <= 0

    def test_several_groups_are_one_release(self) -> None:
        groups = [{"bound": "1", "std": "1"}] * 8  # K groups of sigma 1 give sigma 1/sqrt(8)
        assert not verifier.noise_suffices(groups, "1.000")
        assert verifier.noise_suffices(groups, "0.353")
        assert not verifier.noise_suffices(groups, "0.354")
        assert not verifier.noise_suffices([], "0.001")

    @given(st.integers(0, 40))
    def test_tree_root_equals_the_services(self, size: int) -> None:
        from service.ledger.merkle import root_of_leaves

        leaves = [hashlib.sha256(bytes([n])).hexdigest() for n in range(size)]
        assert verifier.merkle_root(leaves) == root_of_leaves(leaves)


class TestIndependence:
    def test_imports_nothing_but_the_standard_library_and_cryptography(self) -> None:
        tree = ast.parse(SCRIPT.read_text())
        imported: dict[str, bool] = {}
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                names = [node.module or ""]
            for name in names:
                imported[name.partition(".")[0]] = node in tree.body
        outside = {name: top for name, top in imported.items() if name not in STANDARD}
        assert outside == {"cryptography": True, "dp_accounting": False}

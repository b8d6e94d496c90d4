"""An auditor's questions over HTTP: proofs, receipts, refusals, anomalies, access log (13)."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select, update

from service.certificates.envelope import MEDIA_TYPE, signed_bytes
from service.ledger import access, anomalies, guard, merkle, notes
from service.ledger import service as ledger
from service.ledger.errors import LedgerHalted
from service.ledger.keys import load_keys
from service.ledger.models import Entry, LedgerGuard, LogHead
from service.ledger.publisher import Publisher, make_publisher
from tests.service.hospital import open_hospital
from tests.service.ledger import world as w
from tests.service.ledger.street import open_street
from tests.service.ledger.test_endpoints import Desk, code_of, open_desk

ROUTES = {
    "/v1/ledger/entries/0": {"submitter", "steward", "auditor"},
    "/v1/ledger/receipts/0": {"submitter", "steward", "auditor"},
    "/v1/ledger/checkpoint": {"submitter", "steward", "auditor"},
    "/v1/ledger/refusals": {"submitter", "steward", "auditor"},
    "/v1/ledger/anomalies": {"submitter", "steward", "auditor"},
    "/v1/proofs/inclusion?idx=0": {"submitter", "steward", "auditor"},
    "/v1/proofs/consistency?from={size}&to={size}": {"submitter", "steward", "auditor"},
    "/v1/proofs/tlog?entry=0": {"submitter", "steward", "auditor"},
    "/v1/certificates/{job}/proof": {"submitter", "steward", "auditor"},
    "/v1/audits/access": {"auditor"},
}
ROLES = ("submitter", "steward", "auditor", "admin")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A hospital with a released job, five refusals and two checkpoints."""
    with open_hospital(tmp_path_factory.mktemp("audit")) as hospital:
        opened = open_desk(hospital)
        publisher = make_publisher(hospital.settings, hospital.database)
        publisher.turn()
        opened.names["size"] = str(checkpoint_of(opened)["size"])
        with hospital.database.transaction() as session:
            for number in range(5):
                ledger.record_refusal(
                    session,
                    tenant_id=opened.world.tenant,
                    actor=opened.world.submitter,
                    population_id=opened.world.population,
                    job_reference=f"refused-{number}",
                    needed_pico=10 + number,
                    free_pico=8,
                )
        publisher.turn()
        yield opened


def checkpoint_of(desk: Desk) -> Any:
    return desk.get("/v1/ledger/checkpoint").json()


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


class TestAccess:
    @pytest.mark.parametrize("route", ROUTES)
    def test_needs_a_key_and_one_of_the_roles(self, desk: Desk, route: str) -> None:
        assert code_of(desk.get(route, who=None)) == (401, "authentication_required")
        for role in ROLES:
            wanted = 200 if role in ROUTES[route] else 403
            assert desk.get(route, who=role).status_code == wanted, role

    @pytest.mark.parametrize("route", [r for r in ROUTES if "audits" not in r])
    def test_another_tenant_sees_nothing_of_it(self, desk: Desk, route: str) -> None:
        answer = desk.get(route, who="stranger")
        if answer.status_code == 200:
            assert answer.json()["data"] == []
        else:
            assert code_of(answer) == (404, "not_found")

    @pytest.mark.parametrize(
        ("route", "query"),
        [
            ("/v1/ledger/refusals", {"after": "nonsense"}),
            ("/v1/ledger/refusals", {"limit": 0}),
            ("/v1/ledger/anomalies", {"format": "xml"}),
            ("/v1/proofs/inclusion", {}),
            ("/v1/proofs/consistency", {"from": 0, "to": 1}),
            ("/v1/proofs/tlog", {"entry": -1}),
            ("/v1/ledger/entries/x", {}),
        ],
    )
    def test_bad_questions_are_refused(self, desk: Desk, route: str, query: dict[str, Any]) -> None:
        assert desk.get(route, **query).status_code in (400, 422)


class TestProofs:
    def test_an_inclusion_proof_verifies_against_the_signed_root(self, desk: Desk) -> None:
        for index in (0, 5, int(desk.names["size"]) + 2):
            shown = desk.get("/v1/proofs/inclusion", idx=index).json()
            told = notes.parse_checkpoint(notes.parse_note(shown["checkpoint"]).text)
            assert (told.size, told.root) == (shown["size"], shown["root"])
            assert merkle.includes(
                leaf=shown["leaf"],
                index=index,
                size=told.size,
                path=shown["path"],
                root=told.root,
            )

    def test_a_consistency_proof_verifies_between_two_checkpoints(self, desk: Desk) -> None:
        now = checkpoint_of(desk)
        shown = desk.get(
            "/v1/proofs/consistency", **{"from": desk.names["size"], "to": now["size"]}
        ).json()
        assert merkle.extends(
            old=shown["from"],
            old_root=shown["from_root"],
            size=shown["to"],
            root=shown["to_root"],
            path=shown["path"],
        )
        assert shown["to_root"] == now["root"]

    def test_only_signed_sizes_are_proved(self, desk: Desk) -> None:
        unsigned = int(desk.names["size"]) + 1
        answer = desk.get("/v1/proofs/inclusion", idx=0, size=unsigned)
        assert code_of(answer) == (404, "not_found")
        answer = desk.get("/v1/proofs/consistency", **{"from": unsigned, "to": unsigned})
        assert code_of(answer) == (404, "not_found")
        beyond = desk.get("/v1/proofs/inclusion", idx=unsigned, size=desk.names["size"])
        assert code_of(beyond) == (404, "not_found")

    def test_the_checkpoint_is_signed_and_stands_in_the_system_log(self, desk: Desk) -> None:
        shown = checkpoint_of(desk)
        keys = load_keys(desk.hospital.settings)
        for part in (shown, shown["system"]):
            note = notes.parse_note(part["note"])
            told = notes.parse_checkpoint(note.text)
            key = notes.public_key(told.origin, notes.LOG_KEY, keys.log)
            assert notes.is_signed_by(note, key)
            assert (told.size, told.root) == (part["size"], part["root"])
        assert shown["system"]["index"] < shown["system"]["size"]

    def test_a_tlog_proof_is_the_text_of_the_standard(self, desk: Desk) -> None:
        answer = desk.get("/v1/proofs/tlog", entry=3)
        assert answer.headers["content-type"].startswith("text/plain")
        assert answer.text.startswith("c2sp.org/tlog-proof@v1\nindex 3\n")


class TestReceipts:
    def test_a_receipt_is_signed_and_carries_its_proof(self, desk: Desk) -> None:
        shown = desk.get("/v1/ledger/receipts/7").json()
        keys = load_keys(desk.hospital.settings)
        note = notes.parse_note(shown["receipt"])
        origin = note.text.split("\n")[1]
        key = notes.public_key(f"{origin}/receipts", notes.LOG_KEY, keys.receipt)
        assert notes.is_signed_by(note, key)
        assert note.text.split("\n")[2:5] == [
            "7",
            base64.b64encode(bytes.fromhex(shown["leaf"])).decode(),
            shown["publish_by"],
        ]
        extra = shown["proof"].split("\n")[1].removeprefix("extra ")
        assert base64.b64decode(extra).decode() == shown["receipt"]

    def test_the_same_entry_always_has_the_same_receipt(self, desk: Desk) -> None:
        first = desk.get("/v1/ledger/receipts/7").json()["receipt"]
        assert desk.get("/v1/ledger/receipts/7", who="auditor").json()["receipt"] == first

    def test_it_is_due_two_minutes_after_its_minute(self) -> None:
        from service.ledger.receipts import publish_by

        assert publish_by("2026-12-31T23:59Z") == "2027-01-01T00:01Z"

    def test_an_entry_that_is_not_there_has_none(self, desk: Desk) -> None:
        assert code_of(desk.get("/v1/ledger/receipts/99999")) == (404, "not_found")


class TestRefusals:
    def test_say_by_how_much_it_did_not_fit(self, desk: Desk) -> None:
        data = desk.get("/v1/ledger/refusals").json()["data"]
        assert [row["short_by_pico"] for row in data] == ["2", "3", "4", "5", "6"]
        assert {row["population"] for row in data} == {desk.world.population}

    def test_pages_by_cursor_hold_every_row_once(self, desk: Desk) -> None:
        seen: list[str] = []
        cursor: dict[str, Any] = {}
        while True:
            page = desk.get("/v1/ledger/refusals", limit=2, **cursor).json()
            seen += [row["id"] for row in page["data"]]
            if not page["has_more"]:
                break
            cursor = {"after": page["last_id"]}
        assert len(seen) == len(set(seen)) == 5

    def test_csv_holds_the_same_rows_and_the_next_cursor(self, desk: Desk) -> None:
        answer = desk.get("/v1/ledger/refusals", format="csv", limit=2)
        assert answer.headers["content-type"].startswith("text/csv")
        shown = desk.get("/v1/ledger/refusals", limit=2).json()
        assert [row["needed_pico"] for row in rows_of(answer.text)] == ["10", "11"]
        assert answer.headers["x-next-after"] == shown["last_id"]

    def test_filter_by_population(self, desk: Desk) -> None:
        assert desk.get("/v1/ledger/refusals", population="pop_other").json()["data"] == []


class TestAnomalies:
    def test_a_row_of_refusals_is_one(self, desk: Desk) -> None:
        shown = desk.get("/v1/ledger/anomalies", who="auditor").json()["data"]
        (row,) = [one for one in shown if one["kind"] == "refusals_in_a_row"]
        assert (row["subject"], row["detail"]["at_least"]) == (desk.world.population, 5)

    def test_filter_by_kind_and_csv(self, desk: Desk) -> None:
        answer = desk.get("/v1/ledger/anomalies", kind="refusals_in_a_row", format="csv")
        assert [row["detail.at_least"] for row in rows_of(answer.text)] == ["5"]
        assert desk.get("/v1/ledger/anomalies", kind="old_hold").json()["data"] == []


class TestForecast:
    def ask(self, desk: Desk, who: str | None = "steward", **body: Any) -> Any:
        return desk.post("/v1/ledger/forecast", {"population": desk.world.population} | body, who)

    def test_counts_whole_jobs_like_one_that_ran(self, desk: Desk) -> None:
        shown = self.ask(desk, job=desk.names["job"]).json()
        budget = desk.get("/v1/budgets/{population}").json()
        one, free = 40 * 363154049, int(budget["free_pico"])
        assert shown["jobs"] == free // one
        assert int(shown["free_after_pico"]) == free - shown["jobs"] * one < one

    def test_counts_jobs_of_a_size(self, desk: Desk) -> None:
        assert self.ask(desk, reserve_pico=str(2**61)).json()["jobs"] == 0

    def test_writes_nothing(self, desk: Desk) -> None:
        before = desk.get("/v1/budgets/{population}").json()
        self.ask(desk, job=desk.names["job"])
        assert desk.get("/v1/budgets/{population}").json() == before

    @pytest.mark.parametrize("body", [{}, {"job": "x", "reserve_pico": "1"}, {"reserve_pico": 1.5}])
    def test_needs_exactly_one_size(self, desk: Desk, body: dict[str, Any]) -> None:
        assert self.ask(desk, **body).status_code == 422

    def test_is_for_readers_of_the_ledger(self, desk: Desk) -> None:
        assert code_of(self.ask(desk, who=None, reserve_pico="1"))[0] == 401
        assert code_of(self.ask(desk, who="admin", reserve_pico="1"))[0] == 403
        assert code_of(self.ask(desk, who="stranger", reserve_pico="1"))[0] == 404


class TestTables:
    @pytest.mark.parametrize("route", ["/v1/grants", "/v1/releases", "/v1/budgets"])
    def test_lists_come_as_csv_too(self, desk: Desk, route: str) -> None:
        shown = desk.get(route).json()["data"]
        rows = rows_of(desk.get(route, format="csv").text)
        assert [row["id"] for row in rows] == [one["id"] for one in shown]
        assert rows


class TestCertificates:
    def test_by_accept_they_come_in_a_signed_envelope(self, desk: Desk) -> None:
        url = f"/v1/certificates/{desk.names['job']}"
        headers = {"Authorization": f"Bearer {desk.keys['auditor']}", "Accept": MEDIA_TYPE}
        answer = desk.hospital.client.get(url, headers=headers)
        assert answer.headers["content-type"] == MEDIA_TYPE
        payload = base64.b64decode(answer.json()["payload"])
        assert payload == desk.get(url).content
        key = load_keys(desk.hospital.settings).log.public_key()
        signature = base64.b64decode(answer.json()["signatures"][0]["sig"])
        key.verify(signature, signed_bytes(payload))


class TestAccessLog:
    def reads(self, desk: Desk) -> list[dict[str, Any]]:
        with desk.hospital.database.reading() as session:
            rows = session.scalars(access.visible_reads(desk.world.tenant)).all()
            return [access.read_to_dict(row) for row in rows]

    def test_each_read_is_entered_with_role_route_and_object(self, desk: Desk) -> None:
        before = len(self.reads(desk))
        desk.get("/v1/ledger/jobs/{job}/statement", who="auditor")
        (made,) = self.reads(desk)[before:]
        assert (made["actor"], made["role"]) == (desk.world.auditor, "auditor")
        assert made["route"] == "/v1/ledger/jobs/{job_id}/statement"
        assert (made["shown"], made["outcome"]) == (desk.names["job"], "allowed")

    @pytest.mark.parametrize(
        "route", [*ROUTES, "/v1/budgets", "/v1/ledger/bundle", "/v1/populations"]
    )
    def test_no_read_of_the_ledger_is_left_out(self, desk: Desk, route: str) -> None:
        before = len(self.reads(desk))
        desk.get(route, who="auditor")
        assert len(self.reads(desk)) == before + 1

    def test_refused_and_fruitless_reads_are_entered_without_what_was_asked(
        self, desk: Desk
    ) -> None:
        before = len(self.reads(desk))
        desk.get("/v1/audits/access", who="admin")
        desk.get("/v1/ledger/jobs/secret-name/statement")
        desk.get("/v1/ledger/entries", job="secret-name")
        outcomes = [(row["outcome"], row["shown"]) for row in self.reads(desk)[before:]]
        assert outcomes == [("denied", None), ("absent", None), ("allowed", None)]
        with desk.hospital.database.reading() as session:
            assert not [body for body in session.scalars(select(Entry.body)) if "secret" in body]

    def test_writes_and_strangers_without_a_key_are_not(self, desk: Desk) -> None:
        before = len(self.reads(desk))
        desk.get("/v1/budgets", who=None)
        desk.post("/v1/grants", {})
        assert len(self.reads(desk)) == before

    def test_the_auditor_reads_it_in_pages_and_as_csv(self, desk: Desk) -> None:
        page = desk.get("/v1/audits/access", who="auditor", limit=2).json()
        after = desk.get(
            "/v1/audits/access", who="auditor", limit=2, after=page["last_id"], format="csv"
        )
        assert page["has_more"] and len(rows_of(after.text)) == 2
        assert not {row["id"] for row in page["data"]} & {row["id"] for row in rows_of(after.text)}

    def test_a_read_that_cannot_be_entered_is_not_answered(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_args: Any, **_values: Any) -> None:
            raise RuntimeError("disk full")

        monkeypatch.setattr(access, "record", broken)
        answer = desk.get("/v1/budgets")
        assert answer.status_code == 500 and "limit" not in answer.text

    def test_a_read_row_report_is_entered_too(self, desk: Desk) -> None:
        before = len(self.reads(desk))
        answer = desk.get("/v1/files/file-none/validation")
        assert answer.status_code == 404
        assert [row["outcome"] for row in self.reads(desk)[before:]] == ["absent"]

    def test_it_is_chained_signed_and_out_of_reach_of_the_ledgers_routes(self, desk: Desk) -> None:
        with desk.hospital.database.reading() as session:
            logs = session.scalars(
                select(LogHead.log_id).where(LogHead.tenant_id == desk.world.tenant)
            ).all()
        (own,) = [log for log in logs if log.startswith("access/")]
        assert desk.get("/v1/ledger/entries", log=own).json()["data"] == []
        assert code_of(desk.get("/v1/ledger/bundle", log=own)) == (404, "not_found")


class TestStanding:
    def test_entries_are_stored_then_integrated_then_published(self, tmp_path: Any) -> None:
        with open_hospital(tmp_path) as hospital:
            desk = open_desk(hospital)
            keys = load_keys(hospital.settings)
            street = open_street(tmp_path / "street", keys)
            publisher = Publisher(
                db=hospital.database,
                keys=keys,
                witnesses=street.clients(),
                quorum=2,
                folder=tmp_path / "memory",
                post=street.post,
            )
            state = "/v1/ledger/entries/0"
            assert desk.get(state).json()["state"] == "stored"
            street.down = {"w2"}
            publisher.turn()
            assert desk.get(state).json()["state"] == "integrated"
            street.down = set()
            publisher.turn()
            assert desk.get(state).json()["state"] == "published"
            at = desk.get("/v1/budgets/{population}").json()["at"]
            assert (at["state"], at["witnesses"]) == ("published", "2 of 2 needed")


def test_a_release_is_signed_at_once(tmp_path: Any) -> None:
    with open_hospital(tmp_path) as hospital:
        desk = open_desk(hospital)
        job = w.run_job(desk.world, run_plan=w.plan())
        shown = desk.post("/v1/releases", {"job": job}).json()
        desk.sign("steward", shown)
        assert code_of(desk.get("/v1/ledger/checkpoint")) == (404, "not_found")
        assert desk.sign("steward2", shown).json()["state"] == "published"
        (entry,) = desk.get("/v1/ledger/entries", type="release.published", job=job).json()["data"]
        assert entry["state"] == "integrated"


class TestAnomalyKinds:
    """Each kind once, from rows made for it."""

    def kinds(self, world: w.World) -> dict[str, dict[str, Any]]:
        with world.db.reading() as session:
            return {
                found.kind: found.detail for found in anomalies.anomalies_of(session, world.tenant)
            }

    @pytest.fixture
    def world(self, tmp_path: Any) -> Iterator[w.World]:
        with w.sqlite_database(tmp_path) as db:
            yield w.open_world(db, epsilon="3")

    def test_a_quiet_ledger_has_none(self, world: w.World) -> None:
        assert self.kinds(world) == {}

    def test_lost_windows_and_a_used_budget(self, world: w.World) -> None:
        w.run_job(world, run_plan=w.plan(steps=20, margin_steps=900), crash=True)
        with world.db.transaction() as session:
            w.reserve(session, world, job="ftjob-big", run_plan=w.plan(steps=900, margin_steps=0))
        found = self.kinds(world)
        assert found["windows_abandoned"] == {"windows": 1, "attempts": 2}
        assert found["budget_used"]["percent_at_least"] == 50

    def test_old_holds_and_late_checkpoints(
        self, world: w.World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with world.db.transaction() as session:
            w.reserve(session, world, job="ftjob-old")
        late = w.now_us() + 8 * 24 * 3600 * 1_000_000
        monkeypatch.setattr(anomalies, "now_us", lambda: late)
        assert {"old_hold", "checkpoint_late"} <= set(self.kinds(world))

    def test_overlaps(self, world: w.World) -> None:
        from service.populations.models import Population

        with world.db.transaction() as session:
            session.execute(update(Population).values(overlap_with=None))
        assert "overlap_unstated" in self.kinds(world)
        with world.db.transaction() as session:
            session.execute(update(Population).values(overlap_with='["pop_x"]'))
        assert self.kinds(world)["population_overlap"] == {"with": ["pop_x"]}

    @pytest.mark.parametrize(
        ("age", "kind"), [(0, None), (700, "witness_late"), (4000, "witness_stale")]
    )
    def test_witnesses(self, world: w.World, age: int, kind: str | None) -> None:
        with world.db.transaction() as session:
            guard.configure(session, quorum=1)
            session.execute(
                update(LedgerGuard).values(quorum_at=LedgerGuard.quorum_at - age * 1_000_000)
            )
        assert set(self.kinds(world)) == ({kind} if kind else set())

    def test_a_halted_ledger_and_a_broken_balance(self, world: w.World) -> None:
        from service.ledger.models import Account

        with world.db.transaction() as session:
            guard.halt(session, reason="log_shrunk", seen_size=9)
            session.execute(
                update(Account)
                .where(Account.kind == "spent")
                .values(balance_pico=Account.balance_pico + 1)
            )
        found = self.kinds(world)
        assert found["ledger_halted"]["reason"] == "log_shrunk"
        assert found["balance_broken"] == {"sum_pico": "1"}

    def test_a_halted_ledger_answers_503(self, tmp_path: Any) -> None:
        with open_hospital(tmp_path) as hospital:
            desk = open_desk(hospital)
            with hospital.database.transaction() as session:
                guard.halt(session, reason="log_shrunk", seen_size=9)
            with (
                pytest.raises(LedgerHalted, match="does not extend") as halted,
                hospital.database.transaction() as session,
            ):
                w.reserve(session, desk.world, job="ftjob-x")
            from service.error_table import as_service_error

            answer = as_service_error(halted.value)
            assert answer is not None and (answer.status, answer.code) == (503, "ledger_halted")
            assert json.loads(desk.get("/v1/ledger/anomalies").text)["data"]

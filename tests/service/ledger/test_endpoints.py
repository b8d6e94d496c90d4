"""Routes of budgets, grants, releases, ledger and certificates: each as every kind of caller."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from service.auth.keys import issue_key
from service.ledger import service as ledger
from tests.service.hospital import Hospital, open_hospital
from tests.service.ledger import world as w

READ_ROUTES = {
    "/v1/budgets": {"submitter", "steward", "auditor", "admin"},
    "/v1/budgets/{population}": {"submitter", "steward", "auditor", "admin"},
    "/v1/budgets/{population}/history": {"submitter", "steward", "auditor", "admin"},
    "/v1/grants": {"steward", "auditor"},
    "/v1/grants/{grant}": {"steward", "auditor"},
    "/v1/releases": {"steward", "auditor"},
    "/v1/releases/{release}": {"steward", "auditor"},
    "/v1/ledger/entries": {"submitter", "steward", "auditor"},
    "/v1/ledger/jobs/{job}/statement": {"submitter", "steward", "auditor"},
    "/v1/ledger/bundle": {"submitter", "steward", "auditor"},
    "/v1/certificates/{job}": {"submitter", "steward", "auditor"},
    "/v1/populations": {"submitter", "steward", "auditor"},
    "/v1/populations/{population}": {"submitter", "steward", "auditor"},
}
WRITE_ROUTES = (
    "/v1/populations",
    "/v1/grants",
    "/v1/grants/{grant}/approvals",
    "/v1/releases",
    "/v1/releases/{release}/approvals",
)


@dataclass
class Desk:
    """The API with a tenant's people at it, and one finished, released job."""

    hospital: Hospital
    world: w.World
    keys: dict[str, str]
    names: dict[str, str]

    def get(self, path: str, who: str | None = "steward", **query: Any) -> Any:
        headers = {} if who is None else {"Authorization": f"Bearer {self.keys[who]}"}
        url = path.format(**self.names)
        return self.hospital.client.get(url, params=query or None, headers=headers)

    def post(self, path: str, body: Any, who: str | None = "steward") -> Any:
        headers = {} if who is None else {"Authorization": f"Bearer {self.keys[who]}"}
        url = path.format(**self.names)
        return self.hospital.client.post(url, json=body, headers=headers)

    def sign(self, steward: str, shown: dict[str, Any], decision: str = "approve") -> Any:
        """Signs as `steward` or `steward2` and sends the decision."""
        person = self.world.proposer if steward == "steward" else self.world.second
        signature = self.world.sign(person, shown["entry"], decision)
        group = "releases" if shown["object"] == "release" else "grants"
        body = {"decision": decision, "signature": signature}
        return self.post(f"/v1/{group}/{shown['id']}/approvals", body, steward)


@pytest.fixture
def desk(hospital: Hospital) -> Desk:
    """For tests that write."""
    return open_desk(hospital)


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """For tests that only read, or are refused."""
    with open_hospital(tmp_path_factory.mktemp("reading")) as hospital:
        yield open_desk(hospital)


def open_desk(hospital: Hospital) -> Desk:
    world = w.open_world(hospital.database)
    job = w.run_job(world, run_plan=w.plan())
    release = w.publish(world, job)
    people = {
        "steward": world.proposer,
        "steward2": world.second,
        "submitter": world.submitter,
        "auditor": world.auditor,
        "admin": world.admin,
    }
    with hospital.database.transaction() as session:
        keys = {name: issue_key(session, person).text for name, person in people.items()}
    keys["stranger"] = hospital.people["steward"].key
    desk = Desk(hospital=hospital, world=world, keys=keys, names={})
    grant = desk.get("/v1/grants").json()["data"][0]["id"]
    desk.names = {"population": world.population, "grant": grant, "release": release, "job": job}
    return desk


def code_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


class TestAccess:
    @pytest.mark.parametrize("route", READ_ROUTES)
    def test_reading_needs_a_key(self, reading: Desk, route: str) -> None:
        assert code_of(reading.get(route, who=None)) == (401, "authentication_required")

    @pytest.mark.parametrize("route", READ_ROUTES)
    def test_reading_is_for_the_listed_roles(self, reading: Desk, route: str) -> None:
        for role in ("submitter", "steward", "auditor", "admin"):
            wanted = 200 if role in READ_ROUTES[route] else 403
            assert reading.get(route, who=role).status_code == wanted, role

    @pytest.mark.parametrize("route", [r for r in READ_ROUTES if "{" in r])
    def test_another_tenants_object_is_not_found(self, reading: Desk, route: str) -> None:
        assert code_of(reading.get(route, who="stranger")) == (404, "not_found")

    @pytest.mark.parametrize("route", ["/v1/budgets", "/v1/grants", "/v1/ledger/entries"])
    def test_lists_hold_the_own_tenants_rows_only(self, reading: Desk, route: str) -> None:
        assert reading.get(route).json()["data"]
        assert reading.get(route, who="stranger").json()["data"] == []

    @pytest.mark.parametrize("route", WRITE_ROUTES)
    def test_writing_needs_a_key_and_a_steward(self, reading: Desk, route: str) -> None:
        assert code_of(reading.post(route, {}, who=None)) == (401, "authentication_required")
        for role in ("submitter", "auditor", "admin"):
            assert code_of(reading.post(route, {}, who=role)) == (403, "role_forbidden")

    @pytest.mark.parametrize("route", WRITE_ROUTES)
    def test_unknown_fields_and_missing_ones_are_refused(self, reading: Desk, route: str) -> None:
        assert code_of(reading.post(route, {"secret-value": "secret-value"}))[0] == 400
        assert "secret-value" not in reading.post(route, {"secret-value": "secret-value"}).text
        assert code_of(reading.post(route, {})) == (422, "field_invalid")

    @pytest.mark.parametrize("route", READ_ROUTES)
    def test_unknown_query_parameters_are_not_ignored(self, reading: Desk, route: str) -> None:
        if route in ("/v1/budgets", "/v1/ledger/entries", "/v1/ledger/bundle"):
            assert reading.get(route, as_off="3").status_code == 400


class TestGrants:
    def test_two_stewards_raise_the_limit_over_http(self, desk: Desk) -> None:
        body = {
            "population": desk.world.population,
            "epsilon": 8.5,
            "reason_code": "study_extension",
        }
        made = desk.post("/v1/grants", body)
        assert made.status_code == 201
        shown = made.json()
        assert made.headers["location"] == f"/v1/grants/{shown['id']}"
        assert (shown["epsilon"], shown["delta"], shown["alpha_star"]) == ("8.5", "1e-6", 4)
        assert desk.sign("steward", shown).json()["state"] == "proposed"
        done = desk.sign("steward2", shown)
        assert (done.status_code, done.json()["state"]) == (201, "effective")
        assert {a["approver"] for a in done.json()["approvals"]} == {
            desk.world.proposer,
            desk.world.second,
        }
        limit = desk.get("/v1/budgets/{population}").json()["limit"]
        assert limit == {"epsilon": "8.5", "pico": "4644610006836", "guarantee": True}

    def test_a_wrong_signature_is_a_named_fault(self, desk: Desk) -> None:
        body = {"population": desk.world.population, "epsilon": "9", "reason_code": "correction"}
        shown = desk.post("/v1/grants", body).json()
        forged = {"decision": "approve", "signature": "A" * 86 + "=="}
        answer = desk.post(f"/v1/grants/{shown['id']}/approvals", forged)
        assert code_of(answer) == (422, "field_invalid")
        assert "A" * 20 not in answer.text

    def test_a_closed_grant_is_a_conflict_the_client_does_not_repeat(self, desk: Desk) -> None:
        body = {"population": desk.world.population, "epsilon": "9", "reason_code": "correction"}
        shown = desk.post("/v1/grants", body).json()
        assert desk.sign("steward", shown, "reject").json()["state"] == "rejected"
        late = desk.sign("steward2", shown)
        assert code_of(late) == (409, "state_conflict")
        assert late.headers["x-should-retry"] == "false"

    def test_filters_by_population(self, desk: Desk) -> None:
        assert len(desk.get("/v1/grants", population=desk.world.population).json()["data"]) == 1
        assert desk.get("/v1/grants", population="pop_other").json()["data"] == []


class TestReleases:
    def test_a_release_shows_verdict_reasons_and_files(self, desk: Desk) -> None:
        shown = desk.get("/v1/releases/{release}").json()
        assert (shown["state"], shown["verdict"]) == ("published", "conditional")
        assert shown["reasons"] == ["no_external_witness"]
        names = {artifact["name"] for artifact in shown["artifacts"]}
        assert names == {"adapter_config.json", "adapter_model.safetensors"}

    def test_two_stewards_publish_over_http(self, desk: Desk) -> None:
        job = w.run_job(desk.world, run_plan=w.plan())
        shown = desk.post("/v1/releases", {"job": job}).json()
        assert desk.sign("steward", shown).json()["state"] == "requested"
        assert desk.sign("steward2", shown).json()["state"] == "published"

    def test_a_second_request_is_a_conflict(self, desk: Desk) -> None:
        answer = desk.post("/v1/releases", {"job": desk.names["job"]})
        assert code_of(answer) == (409, "state_conflict")

    def test_an_unknown_job_is_not_found(self, desk: Desk) -> None:
        assert code_of(desk.post("/v1/releases", {"job": "ftjob-none"})) == (404, "not_found")


class TestBudgets:
    def test_every_epsilon_stands_with_delta_unit_relation_and_guarantee(
        self, reading: Desk
    ) -> None:
        shown = reading.get("/v1/budgets/{population}").json()
        assert (shown["unit"], shown["relation"], shown["delta"]) == (
            "patient",
            "add_remove",
            "1e-6",
        )
        assert (shown["alpha_star"], shown["rule"]) == (4, "rdp_filter_fixed_order")
        assert shown["limit"]["guarantee"] is True
        assert shown["epsilon_so_far"]["guarantee"] is False
        amounts = [int(shown[f"{kind}_pico"]) for kind in ("held", "spent", "free")]
        assert sum(amounts) == int(shown["limit"]["pico"])
        assert [block["block"] for block in shown["blocks"]] == ["train"]

    def test_as_of_an_index_shows_the_earlier_balances(self, reading: Desk) -> None:
        now = reading.get("/v1/budgets/{population}").json()
        then = reading.get("/v1/budgets/{population}", as_of=8).json()
        assert (then["spent_pico"], then["at"]["idx"]) == ("0", 8)
        assert now["spent_pico"] != "0"
        beyond = reading.get("/v1/budgets/{population}", as_of=10**6)
        assert code_of(beyond) == (404, "not_found")

    def test_the_history_ends_with_the_balance_and_is_no_guarantee(self, reading: Desk) -> None:
        now = reading.get("/v1/budgets/{population}").json()
        told = reading.get("/v1/budgets/{population}/history").json()
        assert (told["unit"], told["guarantee"]) == ("minute", False)
        last = told["data"][-1]
        names = ("spent_pico", "held_pico", "free_pico")
        assert [last[name] for name in names] == [now[name] for name in names]
        assert last["limit_pico"] == now["limit"]["pico"]
        assert told["pace"] == [{"block": "train", "spent_pico_per_day": None, "used_up_at": None}]

    def test_the_history_as_csv_has_the_same_rows(self, reading: Desk) -> None:
        answer = reading.get("/v1/budgets/{population}/history", format="csv", days=7)
        rows = list(csv.DictReader(io.StringIO(answer.text)))
        assert rows[-1] == reading.get("/v1/budgets/{population}/history").json()["data"][-1] | {
            "at": rows[-1]["at"]
        }

    @pytest.mark.parametrize("days", [0, 367, "x"])
    def test_a_history_of_no_or_too_many_days_is_refused(self, reading: Desk, days: Any) -> None:
        answer = reading.get("/v1/budgets/{population}/history", days=days)
        assert answer.status_code == 422 and "days" in answer.text


class TestEntries:
    def test_json_pages_in_index_order(self, reading: Desk) -> None:
        first = reading.get("/v1/ledger/entries", limit=3).json()
        assert [item["entry"]["idx"] for item in first["data"]] == [0, 1, 2]
        assert first["has_more"] is True
        second = reading.get("/v1/ledger/entries", limit=3, after=2).json()
        assert [item["entry"]["idx"] for item in second["data"]] == [3, 4, 5]

    def test_filters_by_type_job_and_population(self, reading: Desk) -> None:
        charges = reading.get(
            "/v1/ledger/entries", type="window.charge", job=reading.names["job"]
        ).json()
        assert {item["entry"]["type"] for item in charges["data"]} == {"window.charge"}
        assert len(charges["data"]) == 2
        of = reading.get("/v1/ledger/entries", population=reading.world.population).json()
        assert {item["entry"]["pop"] for item in of["data"]} == {reading.world.population}

    def test_jsonl_holds_the_exact_bytes(self, reading: Desk) -> None:
        lines = reading.get("/v1/ledger/entries", format="jsonl").text.splitlines()
        parsed = reading.get("/v1/ledger/entries").json()["data"]
        assert [json.loads(line) for line in lines] == [item["entry"] for item in parsed]
        canonical = [
            json.dumps(json.loads(x), sort_keys=True, separators=(",", ":")) for x in lines
        ]
        assert lines == canonical

    def test_csv_shows_charges_with_the_escrow_left(self, reading: Desk) -> None:
        text = reading.get("/v1/ledger/entries", format="csv", job=reading.names["job"]).text
        rows = list(csv.DictReader(io.StringIO(text)))
        charged = [row for row in rows if row["type"] == "window.charge"]
        assert [row["charge_pico"] for row in charged] == ["3631540490"] * 2
        assert [row["escrow_left_pico"] for row in charged] == [
            str(30 * 363154049),
            str(20 * 363154049),
        ]
        assert rows[-1]["escrow_left_pico"] == "0"

    @pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 1001}, {"format": "xml"}])
    def test_bad_queries_are_refused(self, reading: Desk, query: dict[str, Any]) -> None:
        assert reading.get("/v1/ledger/entries", **query).status_code in (400, 422)


class TestStatement:
    def test_names_reserved_spent_windows_and_claim(self, reading: Desk) -> None:
        shown = reading.get("/v1/ledger/jobs/{job}/statement").json()
        assert len(shown.pop("receipts")) == 4  # reserve, two windows, settle
        (train,) = shown["blocks"]
        assert train["reserved_pico"] == str(40 * 363154049)
        assert train["spent_pico"] == str(20 * 363154049)
        assert [window["outcome"] for window in shown["windows"]] == ["done", "done"]
        claim = shown["claim"]
        assert (claim["rule"], claim["delta"], claim["guarantee"]) == (
            "pld_fixed_schedule",
            "1e-6",
            True,
        )
        with reading.hospital.database.reading() as session:
            assert shown == json.loads(json.dumps(ledger.job_statement(session, shown["job"])))


class TestCertificates:
    def test_the_bytes_are_those_the_log_names(self, reading: Desk) -> None:
        import hashlib

        answer = reading.get("/v1/certificates/{job}")
        digest = hashlib.sha256(answer.content).hexdigest()
        settled = reading.get("/v1/ledger/entries", type="settle").json()["data"][0]["entry"][
            "data"
        ]
        assert settled["certificate"] == digest
        assert answer.headers["etag"] == f'"{digest}"'


class TestBundle:
    def test_holds_exactly_the_named_files(self, reading: Desk) -> None:
        answer = reading.get("/v1/ledger/bundle", who="auditor")
        assert answer.headers["content-type"] == "application/zip"
        archive = zipfile.ZipFile(io.BytesIO(answer.content))
        assert set(archive.namelist()) == {
            "entries.jsonl",
            "settings.jsonl",
            "checkpoint",
            "system-entry.json",
            "system.tlog-proof",
            f"certificates/{reading.names['job']}.dsse.json",
            f"receipts/{reading.names['job']}.txt",
            f"releases/{reading.names['release']}.tlog-proof",
            "manifest.json",
        }
        manifest = json.loads(archive.read("manifest.json"))
        assert manifest["format"] == "dp-ledger-bundle/1"
        assert manifest["size"] == len(archive.read("entries.jsonl").splitlines())

    def test_equal_logs_give_equal_archives(self, reading: Desk) -> None:
        first = reading.get("/v1/ledger/bundle").content
        assert reading.get("/v1/ledger/bundle", who="auditor").content == first

    def test_the_split_key_and_other_secrets_are_nowhere(self, reading: Desk) -> None:
        from service.populations.models import Population

        with reading.hospital.database.reading() as session:
            secret = session.get_one(Population, reading.world.population).split_key.hex()
        for route in ("/v1/populations", "/v1/ledger/entries", "/v1/budgets"):
            assert secret not in reading.get(route).text


class TestCertificateForms:
    @pytest.mark.parametrize(
        ("accept", "start"),
        [
            ("application/pdf", b"%PDF-"),
            ("application/yaml", b"url_slug:"),
            ("text/html", b"<section>"),
            ("text/plain", b"Privacy facts"),
            ("application/vnd.rldp.label+json", b'{"facts"'),
        ],
    )
    def test_accept_chooses_the_form(self, reading: Desk, accept: str, start: bytes) -> None:
        headers = {"Authorization": f"Bearer {reading.keys['auditor']}", "Accept": accept}
        path = f"/v1/certificates/{reading.names['job']}"
        answer = reading.hospital.client.get(path, headers=headers)
        assert answer.headers["content-type"].startswith(accept)
        assert answer.content.startswith(start)

"""`rldp ledger …` shows what the routes answer, page after page, with the caller's own key."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from typer.testing import CliRunner

from service.cli import app
from service.keyfiles import signing_key
from service.ledger import service as ledger
from service.ledger.approvals import signing_text
from service.ledger.publisher import make_publisher
from tests.deploy.test_verify_ledger import verifier
from tests.service.hospital import open_hospital
from tests.service.ledger.test_endpoints import Desk, open_desk


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_hospital(tmp_path_factory.mktemp("cli")) as hospital:
        opened = open_desk(hospital)
        with hospital.database.transaction() as session:
            for number in range(130):
                ledger.record_refusal(
                    session,
                    tenant_id=opened.world.tenant,
                    actor=opened.world.submitter,
                    population_id=opened.world.population,
                    job_reference=f"refused-{number}",
                    needed_pico=10,
                    free_pico=8,
                )
        make_publisher(hospital.settings, hospital.database).turn()
        yield opened


@pytest.fixture(scope="module")
def url(desk: Desk) -> Iterator[str]:
    """The application behind a real socket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(desk.hospital.app, port=port, log_config=None, lifespan="off")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


class Caller:
    def __init__(self, desk: Desk, url: str) -> None:
        self.desk, self.url = desk, url

    def __call__(self, *arguments: str, who: str = "auditor") -> tuple[int, str]:
        environment = {"RLDP_API_KEY": self.desk.keys[who], "RLDP_URL": self.url}
        done = CliRunner().invoke(app, ["ledger", *arguments], env=environment)
        return done.exit_code, done.stdout + ("" if done.exit_code == 0 else done.stderr)


@pytest.fixture
def rldp(desk: Desk, url: str) -> Caller:
    return Caller(desk, url)


class TestQuestions:
    @pytest.mark.parametrize(
        ("command", "route"),
        [
            (("budget", "{population}"), "/v1/budgets/{population}"),
            (("entry", "3"), "/v1/ledger/entries/3"),
            (("statement", "{job}"), "/v1/ledger/jobs/{job}/statement"),
            (("checkpoint",), "/v1/ledger/checkpoint"),
            (("inclusion", "3"), "/v1/proofs/inclusion?idx=3"),
            (("anomalies",), "/v1/ledger/anomalies"),
        ],
    )
    def test_shows_what_the_route_answers(
        self, rldp: Caller, desk: Desk, command: tuple[str, ...], route: str
    ) -> None:
        code, text = rldp(*(part.format(**desk.names) for part in command))
        assert code == 0, text
        assert json.loads(text) == desk.get(route, who="auditor").json()

    def test_a_list_holds_all_pages(self, rldp: Caller) -> None:
        code, text = rldp("refusals")
        rows = [json.loads(line) for line in text.splitlines()]
        assert (code, len(rows), len({row["id"] for row in rows})) == (0, 130, 130)

    @pytest.mark.parametrize("command", ["refusals", "entries"])
    def test_a_table_has_one_header_and_all_pages(self, rldp: Caller, command: str) -> None:
        code, text = rldp(command, "--csv")
        rows = list(csv.DictReader(io.StringIO(text)))
        indexes = [int(row["idx"]) for row in rows]
        assert code == 0 and len(rows) >= 130
        assert indexes == sorted(set(indexes))

    @pytest.mark.parametrize("command", ["grants", "releases", "budgets", "access"])
    def test_other_lists_have_rows(self, rldp: Caller, command: str) -> None:
        code, text = rldp(command)
        assert code == 0 and json.loads(text.splitlines()[0])["id"]

    def test_a_history_as_json_and_as_a_table(self, rldp: Caller, desk: Desk) -> None:
        asked = ("history", desk.names["population"], "--days", "7")
        shown = json.loads(rldp(*asked)[1])["data"][-1]
        table = list(csv.DictReader(io.StringIO(rldp(*asked, "--csv")[1])))[-1]
        assert table["spent_pico"] == shown["spent_pico"] != "0"

    def test_consistency_between_a_checkpoint_and_itself(self, rldp: Caller) -> None:
        size = str(json.loads(rldp("checkpoint")[1])["size"])
        assert json.loads(rldp("consistency", size, size)[1])["path"] == []

    def test_forecast(self, rldp: Caller, desk: Desk) -> None:
        code, text = rldp("forecast", desk.names["population"], "--job", desk.names["job"])
        assert code == 0 and json.loads(text)["jobs"] > 0


class TestEvidence:
    def test_bundle_and_receipt_pass_the_verifier_under_the_policy(
        self, rldp: Caller, desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out, mine, trusted = (tmp_path / n for n in ("b.zip", "mine", "policy.json"))
        code, text = rldp("receipt", "14")
        assert code == 0, text
        mine.write_text(text)
        assert rldp("bundle", "--out", str(out))[0] == 0
        data = str(desk.hospital.settings.data_dir)
        assert rldp("policy", "--out", str(trusted), "--data-dir", data)[0] == 0
        options = [f"--policy={trusted}", f"--receipt={mine}"]
        assert verifier.main([str(out), *options]) == 0, capsys.readouterr()
        assert rldp("bundle", "--out", str(out))[0] != 0, "an existing file is kept"

    def test_the_certificate_is_byte_for_byte_the_routes(self, rldp: Caller, desk: Desk) -> None:
        plain = rldp("certificate", desk.names["job"])[1]
        assert plain == desk.get("/v1/certificates/{job}").text
        assert "payload" in json.loads(rldp("certificate", desk.names["job"], "--signed")[1])

    def test_vkey_is_the_one_that_signed_the_checkpoint(self, rldp: Caller, desk: Desk) -> None:
        from service.ledger import notes

        text = rldp("vkey", "--data-dir", str(desk.hospital.settings.data_dir))[1]
        note = notes.parse_note(json.loads(rldp("checkpoint")[1])["system"]["note"])
        assert notes.is_signed_by(note, notes.parse_verifier_key(text))


class TestRefusals:
    def test_a_refusal_is_shown_in_the_services_words(self, rldp: Caller) -> None:
        code, text = rldp("access", who="submitter")
        assert (code, "403: Your role may not do this." in text) == (1, True), text

    def test_without_a_key_it_says_where_to_put_one(self, url: str) -> None:
        environment = {"RLDP_URL": url, "RLDP_API_KEY": ""}
        done = CliRunner().invoke(app, ["ledger", "budgets"], env=environment)
        assert done.exit_code != 0 and "RLDP_API_KEY" in done.output + done.stderr

    def test_a_service_that_is_not_there_is_named_as_such(self, desk: Desk) -> None:
        environment = {"RLDP_API_KEY": desk.keys["auditor"], "RLDP_URL": "http://127.0.0.1:9"}
        done = CliRunner().invoke(app, ["ledger", "budgets"], env=environment)
        assert done.exit_code == 1 and "does not answer" in done.output + done.stderr

    def test_a_key_file_serves_as_well(self, desk: Desk, url: str, tmp_path: Path) -> None:
        path = tmp_path / "key"
        path.write_text(desk.keys["auditor"] + "\n")
        arguments = ["ledger", "budgets", "--url", url, "--key-file", str(path)]
        assert "RLDP_API_KEY" not in os.environ
        assert CliRunner().invoke(app, arguments).exit_code == 0


def test_a_steward_reads_and_erases_a_justification(desk: Desk, rldp: Caller) -> None:
    body = {"population": desk.names["population"], "epsilon": "9", "justification": "For Ms. X"}
    asked = desk.post("/v1/grants", body | {"reason_code": "study_extension"}).json()
    index = str(asked["entry"]["idx"])
    code, shown = rldp("disclosures", "--entry", index, who="steward")
    assert (code, json.loads(shown)["data"][0]["value"]) == (0, "For Ms. X")
    assert rldp("disclosures", who="auditor")[0] == 1
    code, told = rldp("redact", index, "--ground", "gdpr_17_1_b", who="steward")
    assert (code, json.loads(told)["legal_ground"]) == (0, "gdpr_17_1_b")
    assert json.loads(rldp("disclosures", who="steward")[1])["data"] == []


class TestCertificateForms:
    def test_pdf_is_written_once_and_never_over_a_file(
        self, desk: Desk, rldp: Caller, tmp_path: Path
    ) -> None:
        out = tmp_path / "certificate.pdf"
        job = desk.names["job"]
        assert rldp("certificate", job, "--pdf", str(out))[0] == 0
        assert out.read_bytes().startswith(b"%PDF-")
        out.write_bytes(b"mine")
        assert rldp("certificate", job, "--pdf", str(out))[0] != 0
        assert out.read_bytes() == b"mine"

    def test_label_and_registry_record_are_printed(self, desk: Desk, rldp: Caller) -> None:
        job = desk.names["job"]
        assert rldp("certificate", job, "--label")[1].startswith("Privacy facts")
        assert rldp("certificate", job, "--registry")[1].startswith("url_slug:")
        assert rldp("certificate", job, "--label", "--registry")[0] != 0


class TestSign:
    def test_the_signature_is_the_one_the_ledger_accepts(
        self, desk: Desk, rldp: Caller, tmp_path: Path
    ) -> None:
        key = signing_key(tmp_path / "steward.pem")
        text = signing_text(origin="rldp.local/tn/2026", leaf="ab" * 32, decision="approve")
        arguments = ["--origin", "rldp.local/tn/2026", "--leaf", "ab" * 32]
        path = str(tmp_path / "steward.pem")
        code, told = rldp("sign", "--key", path, *arguments, "--decision", "approve")
        assert code == 0
        key.public_key().verify(base64.b64decode(told.strip()), text)
        assert rldp("sign", "--key", path, *arguments, "--decision", "maybe")[0] != 0
        assert rldp("sign", "--key", path + "x", *arguments, "--decision", "reject")[0] != 0

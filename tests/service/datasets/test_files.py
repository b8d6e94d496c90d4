"""Files over HTTP: who may, what is kept, what is shown, what is erased."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.auth.subject import Subject
from service.database import Database, now_us
from service.datasets.files import stored_rows, training_version
from service.datasets.models import DatasetVersion, File, FileError
from service.datasets.retention import sweep
from service.errors import DatasetRequired, FileInvalid, NotFound
from service.sealing import keyring
from service.sealing.errors import KeyDestroyed
from service.sealing.keyring import Keyring
from service.sealing.models import DataKey
from tests.service.full_disk import fill_disk
from tests.service.hospital import GOOD_ROWS, Hospital, Person, jsonl, open_hospital
from tests.service.ledger.world import postgres_database

BAD_ROWS = jsonl({"patient_id": "p1"}, {"patient_id": "p1", "text": "a"}, {"text": 5})


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hospital]:
    if request.param == "sqlite":
        with open_hospital(tmp_path) as opened:
            yield opened
    else:
        with postgres_database() as database, open_hospital(tmp_path, database) as opened:
            yield opened


def subject_of(person: Person) -> Subject:
    return Subject(principal_id=person.id, tenant_id=person.tenant_id, role=person.role)


def get(hospital: Hospital, person: Person | None, path: str, **params: Any) -> Any:
    headers = person.headers if person else {}
    return hospital.client.get(path, headers=headers, params=params)


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def stored(database: Database, table: Any) -> list[Any]:
    with database.reading() as session:
        return list(session.query(table))


def files_on_disk(hospital: Hospital) -> list[str]:
    return sorted(path.name for path in hospital.settings.files_dir.iterdir())


def rows_of(hospital: Hospital, version: DatasetVersion) -> bytes:
    with hospital.database.reading() as session:
        keys = Keyring.of(hospital.settings)
        stored = stored_rows(session, keys, version.id, Path(version.path))
    with stored.open() as stream:
        return stream.read()


class TestUpload:
    def test_anonymous(self, hospital: Hospital) -> None:
        assert code(hospital.upload(None, GOOD_ROWS)) == (401, "authentication_required")
        assert files_on_disk(hospital) == []

    @pytest.mark.parametrize("role", ["auditor", "admin"])
    def test_wrong_role(self, hospital: Hospital, role: str) -> None:
        answer = hospital.upload(hospital.people[role], GOOD_ROWS)
        assert code(answer) == (403, "role_forbidden")

    def test_dataset_of_another_tenant(self, hospital: Hospital) -> None:
        foreign = hospital.dataset(hospital.others["steward"])
        answer = hospital.upload(hospital.people["submitter"], GOOD_ROWS, dataset=foreign)
        absent = hospital.upload(hospital.people["submitter"], GOOD_ROWS, dataset="ds_none")
        assert code(answer) == (422, "field_invalid")
        assert answer.json() | {"request_id": ""} == absent.json() | {"request_id": ""}
        assert files_on_disk(hospital) == []

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({"purpose": "batch"}, (400, "unsupported_option")),
            ({"datset": "x"}, (400, "unknown_field")),
            ({"unit_field": "text"}, (422, "field_invalid")),
            ({"unit_field": "u" * 65}, (422, "field_invalid")),
            ({"dataset": "d" * 5000}, (422, "field_invalid")),
            ({"expires_after[seconds]": "7200"}, (422, "field_invalid")),
            (
                {"expires_after[anchor]": "created_at", "expires_after[seconds]": "12"},
                (422, "field_invalid"),
            ),
        ],
    )
    def test_invalid_fields(
        self, hospital: Hospital, fields: dict[str, str], expected: tuple[int, str]
    ) -> None:
        answer = hospital.upload(hospital.people["submitter"], GOOD_ROWS, **fields)
        assert code(answer) == expected
        assert stored(hospital.database, File) == []
        assert files_on_disk(hospital) == []

    def test_an_unknown_field_is_offered_the_nearest(self, hospital: Hospital) -> None:
        answer = hospital.upload(hospital.people["submitter"], GOOD_ROWS, datset="x")
        assert "nearest known field is dataset." in answer.json()["detail"]
        assert "datset" not in answer.text

    def test_without_a_file(self, hospital: Hospital) -> None:
        answer = hospital.client.post(
            "/v1/files",
            files={"purpose": (None, "fine-tune")},
            headers=hospital.people["submitter"].headers,
        )
        assert code(answer) == (422, "field_invalid")
        assert answer.json()["error"]["param"] == "file"

    def test_with_a_broken_form(self, hospital: Hospital) -> None:
        for content_type in ("multipart/form-data", "multipart/form-data; boundary=abc"):
            answer = hospital.client.post(
                "/v1/files",
                content=b"no boundary here",
                headers=hospital.people["submitter"].headers | {"content-type": content_type},
            )
            assert code(answer) == (400, "malformed_json")
        assert files_on_disk(hospital) == []

    def test_an_archive_is_refused(self, hospital: Hospital) -> None:
        answer = hospital.upload(hospital.people["submitter"], b"PK\x03\x04rest")
        assert code(answer) == (415, "media_type_refused")
        assert files_on_disk(hospital) == []

    def test_a_unit_field_other_than_the_datasets_is_refused(self, hospital: Hospital) -> None:
        """Else a visit number could turn one patient into many."""
        dataset = hospital.dataset(hospital.people["steward"])
        answer = hospital.upload(
            hospital.people["submitter"], GOOD_ROWS, dataset=dataset, unit_field="visit_id"
        )
        assert code(answer) == (422, "field_invalid")
        assert answer.json()["error"]["param"] == "privacy.unit_field"

    def test_a_file_over_the_limit_is_refused_while_it_streams(self, tmp_path: Path) -> None:
        with open_hospital(tmp_path, upload_bytes_max=1000) as hospital:
            answer = hospital.upload(hospital.people["submitter"], b"x" * 1001)
            assert code(answer) == (413, "body_too_large")
            assert files_on_disk(hospital) == []
            assert hospital.upload(hospital.people["submitter"], GOOD_ROWS).status_code == 200

    def test_a_valid_file_becomes_a_version_of_its_dataset(self, either: Hospital) -> None:
        dataset = either.dataset(either.people["steward"])
        answer = either.upload(either.people["submitter"], GOOD_ROWS, dataset=dataset)
        assert answer.status_code == 200
        shown = answer.json()
        assert shown["object"] == "file" and shown["status"] == "processed"
        assert (shown["bytes"], shown["dataset"]) == (len(GOOD_ROWS), dataset)
        (version,) = stored(either.database, DatasetVersion)
        assert version.id == shown["dataset_version"]
        assert (version.unit, version.state) == ("patient", "ready")
        path = Path(version.path)
        assert files_on_disk(either) == [path.name] == [f"{version.id}.sealed"]
        assert path.stat().st_mode & 0o777 == 0o600
        assert b"First note." not in path.read_bytes()
        kept = rows_of(either, version)
        assert [json.loads(line)["unit"] for line in kept.splitlines()] == ["p1", "p1", "p2"]

    def test_a_csv_file_is_known_by_its_content(self, hospital: Hospital) -> None:
        answer = hospital.upload(
            hospital.people["submitter"], b"patient_id,text\np1,a\n", name="x.jsonl"
        )
        assert answer.json()["status"] == "processed"
        assert stored(hospital.database, File)[0].kind == "csv"

    def test_an_invalid_file_keeps_its_report_and_none_of_its_rows(self, either: Hospital) -> None:
        dataset = either.dataset(either.people["steward"])
        answer = either.upload(either.people["submitter"], BAD_ROWS, dataset=dataset)
        assert answer.status_code == 200
        assert answer.json()["status"] == "error"
        assert answer.json()["dataset_version"] is None
        assert stored(either.database, DatasetVersion) == []
        assert files_on_disk(either) == []

    def test_a_name_with_a_path_is_cut_to_its_last_part(self, hospital: Hospital) -> None:
        answer = hospital.upload(
            hospital.people["submitter"], GOOD_ROWS, name="../../etc/notes.jsonl"
        )
        assert answer.json()["filename"] == "notes.jsonl"
        assert len(files_on_disk(hospital)) == 1


class TestRetrieve:
    @pytest.fixture
    def file_id(self, hospital: Hospital) -> str:
        return str(hospital.upload(hospital.people["submitter"], GOOD_ROWS).json()["id"])

    @pytest.mark.parametrize("suffix", ["", "/validation", "/content"])
    def test_anonymous(self, hospital: Hospital, file_id: str, suffix: str) -> None:
        assert get(hospital, None, f"/v1/files/{file_id}{suffix}").status_code == 401

    @pytest.mark.parametrize("role", ["auditor", "admin"])
    @pytest.mark.parametrize("suffix", ["", "/validation"])
    def test_wrong_role(self, hospital: Hospital, file_id: str, suffix: str, role: str) -> None:
        answer = get(hospital, hospital.people[role], f"/v1/files/{file_id}{suffix}")
        assert code(answer) == (403, "role_forbidden")

    @pytest.mark.parametrize("suffix", ["", "/validation"])
    def test_of_others_are_absent(self, hospital: Hospital, file_id: str, suffix: str) -> None:
        for person in (
            hospital.colleague,
            hospital.others["submitter"],
            hospital.others["steward"],
        ):
            answer = get(hospital, person, f"/v1/files/{file_id}{suffix}")
            absent = get(hospital, person, f"/v1/files/file-none{suffix}")
            assert code(answer) == (404, "not_found")
            assert answer.json() | {"request_id": ""} == absent.json() | {"request_id": ""}

    @pytest.mark.parametrize("role", ["submitter", "steward"])
    def test_uploader_and_steward_see_it(self, hospital: Hospital, file_id: str, role: str) -> None:
        answer = get(hospital, hospital.people[role], f"/v1/files/{file_id}")
        assert answer.json()["id"] == file_id
        assert answer.json()["purpose"] == "fine-tune"

    @pytest.mark.parametrize("role", ["submitter", "auditor", "admin"])
    def test_content_is_sealed_for_everybody_but_stewards(
        self, hospital: Hospital, file_id: str, role: str
    ) -> None:
        answer = get(hospital, hospital.people[role], f"/v1/files/{file_id}/content")
        assert code(answer) == (403, "training_data_sealed")

    def test_content_shows_a_steward_what_is_kept(self, hospital: Hospital, file_id: str) -> None:
        path = f"/v1/files/{file_id}/content"
        answer = get(hospital, hospital.people["steward"], path)
        assert answer.status_code == 200
        assert len(answer.content.splitlines()) == 3
        assert get(hospital, hospital.others["steward"], path).status_code == 404

    def test_nothing_is_kept_of_an_invalid_file(self, hospital: Hospital) -> None:
        file_id = hospital.upload(hospital.people["submitter"], BAD_ROWS).json()["id"]
        answer = get(hospital, hospital.people["steward"], f"/v1/files/{file_id}/content")
        assert code(answer) == (409, "state_conflict")


class TestList:
    def test_shows_own_files_newest_first_and_stewards_all(self, hospital: Hospital) -> None:
        mine = [
            hospital.upload(hospital.people["submitter"], GOOD_ROWS).json()["id"] for _ in range(3)
        ]
        theirs = hospital.upload(hospital.colleague, GOOD_ROWS).json()["id"]
        hospital.upload(hospital.others["submitter"], GOOD_ROWS)

        def ids(person: Person, **params: Any) -> list[str]:
            return [f["id"] for f in get(hospital, person, "/v1/files", **params).json()["data"]]

        assert ids(hospital.people["submitter"]) == mine[::-1]
        assert ids(hospital.people["submitter"], order="asc") == mine
        assert ids(hospital.people["steward"]) == [theirs, *mine[::-1]]
        assert ids(hospital.people["submitter"], purpose="batch") == []

    def test_pages_by_the_last_id(self, either: Hospital) -> None:
        person = either.people["submitter"]
        made = [either.upload(person, GOOD_ROWS).json()["id"] for _ in range(5)]
        seen: list[str] = []
        after = {}
        while True:
            page = get(either, person, "/v1/files", limit=2, **after).json()
            seen += [item["id"] for item in page["data"]]
            assert page["last_id"] == seen[-1]
            if not page["has_more"]:
                break
            after = {"after": page["last_id"]}
        assert seen == made[::-1]

    def test_a_cursor_of_another_tenant_is_invalid(self, hospital: Hospital) -> None:
        foreign = hospital.upload(hospital.others["submitter"], GOOD_ROWS).json()["id"]
        for cursor in (foreign, "file-none"):
            answer = get(hospital, hospital.people["submitter"], "/v1/files", after=cursor)
            assert code(answer) == (400, "cursor_invalid")

    @pytest.mark.parametrize("limit", ["0", "1001", "x"])
    def test_a_limit_out_of_range_is_invalid(self, hospital: Hospital, limit: str) -> None:
        answer = get(hospital, hospital.people["submitter"], "/v1/files", limit=limit)
        assert code(answer) == (422, "field_invalid")


class TestValidation:
    def test_pages_the_faults_in_file_order(self, either: Hospital) -> None:
        person = either.people["submitter"]
        file_id = either.upload(person, BAD_ROWS).json()["id"]
        path = f"/v1/files/{file_id}/validation"
        report = get(either, person, path).json()
        assert [(f["line"], f["pointer"], f["code"]) for f in report["data"]] == [
            (1, "/text", "field_missing"),
            (3, "/text", "field_type"),
            (3, "/patient_id", "unit_missing"),
        ]
        assert (report["errors_total"], report["complete"]) == (3, True)
        assert report["status"] == "error"
        assert report["notice"] == "not differentially private, do not release"
        first = get(either, person, path, limit=2).json()
        assert first["has_more"] and len(first["data"]) == 2
        rest = get(either, person, path, after=first["last_id"]).json()
        assert first["data"] + rest["data"] == report["data"]

    @pytest.mark.parametrize("after", ["x", "-1", "1" * 12])
    def test_a_cursor_that_is_none_is_invalid(self, hospital: Hospital, after: str) -> None:
        person = hospital.people["submitter"]
        file_id = hospital.upload(person, BAD_ROWS).json()["id"]
        answer = get(hospital, person, f"/v1/files/{file_id}/validation", after=after)
        assert code(answer) == (400, "cursor_invalid")

    def test_of_a_valid_file_is_empty(self, hospital: Hospital) -> None:
        person = hospital.people["submitter"]
        file_id = hospital.upload(person, GOOD_ROWS).json()["id"]
        report = get(hospital, person, f"/v1/files/{file_id}/validation").json()
        assert (report["data"], report["errors_total"], report["status"]) == ([], 0, "processed")


class TestDelete:
    def delete(self, hospital: Hospital, person: Person | None, file_id: str) -> Any:
        headers = person.headers if person else {}
        return hospital.client.delete(f"/v1/files/{file_id}", headers=headers)

    def test_of_others_is_refused_and_changes_nothing(self, hospital: Hospital) -> None:
        file_id = hospital.upload(hospital.people["submitter"], GOOD_ROWS).json()["id"]
        assert self.delete(hospital, None, file_id).status_code == 401
        assert self.delete(hospital, hospital.people["admin"], file_id).status_code == 403
        for person in (hospital.colleague, hospital.others["steward"]):
            assert self.delete(hospital, person, file_id).status_code == 404
        assert len(files_on_disk(hospital)) == 1

    @pytest.mark.parametrize("role", ["submitter", "steward"])
    def test_erases_rows_name_and_report(self, either: Hospital, role: str) -> None:
        dataset = either.dataset(either.people["steward"])
        submitter = either.people["submitter"]
        file_id = either.upload(submitter, GOOD_ROWS, dataset=dataset).json()["id"]
        bad_id = either.upload(submitter, BAD_ROWS).json()["id"]
        for one in (file_id, bad_id):
            answer = self.delete(either, either.people[role], one)
            assert answer.json() == {"id": one, "object": "file", "deleted": True}
        assert files_on_disk(either) == []
        assert stored(either.database, FileError) == []
        assert {file.filename for file in stored(either.database, File)} == {""}
        assert [v.state for v in stored(either.database, DatasetVersion)] == ["erased"]
        assert get(either, submitter, f"/v1/files/{file_id}").status_code == 404
        assert get(either, submitter, "/v1/files").json()["data"] == []
        assert self.delete(either, submitter, file_id).status_code == 404


class TestTrainingVersion:
    """What a job may train on."""

    def ask(self, hospital: Hospital, person: Person, file_id: str) -> Any:
        with hospital.database.reading() as session:
            return training_version(session, subject_of(person), file_id)

    def test_follows_from_the_file(self, hospital: Hospital) -> None:
        dataset = hospital.dataset(hospital.people["steward"])
        person = hospital.people["submitter"]
        shown = hospital.upload(person, GOOD_ROWS, dataset=dataset).json()
        version = self.ask(hospital, person, shown["id"])
        assert (version.version_id, version.dataset_id) == (shown["dataset_version"], dataset)
        assert version.population_id.startswith("pop_")
        assert version.unit == "patient"

    def test_is_absent_for_others_and_after_deletion(self, hospital: Hospital) -> None:
        person = hospital.people["submitter"]
        file_id = hospital.upload(person, GOOD_ROWS).json()["id"]
        with pytest.raises(NotFound):
            self.ask(hospital, hospital.colleague, file_id)
        hospital.client.delete(f"/v1/files/{file_id}", headers=person.headers)
        with pytest.raises(NotFound):
            self.ask(hospital, person, file_id)

    def test_needs_a_valid_file_with_a_dataset(self, hospital: Hospital) -> None:
        person = hospital.people["submitter"]
        with pytest.raises(FileInvalid):
            self.ask(hospital, person, hospital.upload(person, BAD_ROWS).json()["id"])
        with pytest.raises(DatasetRequired):
            self.ask(hospital, person, hospital.upload(person, GOOD_ROWS).json()["id"])


class TestAtRest:
    """Files sealed under a key of their own: lost, changed, swapped, without room."""

    def version(self, hospital: Hospital, rows: bytes = GOOD_ROWS) -> DatasetVersion:
        dataset = hospital.dataset(hospital.people["steward"])
        shown = hospital.upload(hospital.people["submitter"], rows, dataset=dataset).json()
        with hospital.database.reading() as session:
            return session.get_one(DatasetVersion, shown["dataset_version"])

    def content(self, hospital: Hospital, version: DatasetVersion) -> Any:
        return get(hospital, hospital.people["steward"], f"/v1/files/{version.file_id}/content")

    def test_a_deleted_files_copy_is_unreadable(self, either: Hospital, tmp_path: Path) -> None:
        version = self.version(either)
        aside = Path(version.path).read_bytes()
        assert rows_of(either, version).count(b"\n") == 3
        either.client.delete(
            f"/v1/files/{version.file_id}", headers=either.people["steward"].headers
        )
        Path(version.path).write_bytes(aside)  # a backup of the volume is put back
        with pytest.raises(KeyDestroyed):
            rows_of(either, version)
        assert stored(either.database, DataKey) == []

    def test_an_expired_files_key_goes_with_it(self, hospital: Hospital) -> None:
        version = self.version(hospital)
        with hospital.database.transaction() as session:
            session.get_one(File, version.file_id).expires_at = now_us() - 1
        assert sweep(hospital.database, hospital.settings.files_dir) == 1
        assert stored(hospital.database, DataKey) == []

    def test_an_invalid_file_leaves_no_key(self, hospital: Hospital) -> None:
        hospital.upload(hospital.people["submitter"], BAD_ROWS)
        assert stored(hospital.database, DataKey) == []

    def test_a_changed_or_swapped_file_is_told_and_not_shown(self, hospital: Hospital) -> None:
        one, two = self.version(hospital), self.version(hospital)
        raw = Path(one.path).read_bytes()
        for content in (raw[:-1], Path(two.path).read_bytes(), GOOD_ROWS):
            Path(one.path).write_bytes(content)
            answer = self.content(hospital, one)
            assert code(answer) == (500, "internal")
            assert "note" not in answer.text.lower().replace("not ", "")
        Path(one.path).write_bytes(raw)
        assert self.content(hospital, one).status_code == 200

    def test_a_file_that_is_gone_is_told(self, hospital: Hospital) -> None:
        version = self.version(hospital)
        Path(version.path).unlink()
        answer = self.content(hospital, version)
        assert code(answer) == (409, "state_conflict")
        assert "not on the disk any more" in answer.json()["detail"]

    @pytest.mark.parametrize("room", [0, len(GOOD_ROWS) + 10])
    def test_a_full_disk_is_told_and_nothing_is_left(
        self, hospital: Hospital, monkeypatch: pytest.MonkeyPatch, room: int
    ) -> None:
        """While the body arrives, and while the rows are written."""
        fill_disk(monkeypatch, after_bytes=room)
        answer = hospital.upload(hospital.people["submitter"], GOOD_ROWS)
        assert code(answer) == (503, "not_ready")
        assert "disk is full" in answer.json()["detail"] and answer.headers["retry-after"]
        assert files_on_disk(hospital) == [] and stored(hospital.database, File) == []

    def test_without_the_data_key_nothing_is_stored(self, hospital: Hospital) -> None:
        version = self.version(hospital)
        path = hospital.settings.keys_dir / "data.key"
        path.rename(path.with_name("elsewhere"))
        path.write_text("00" * 32)  # of another deployment
        answer = hospital.upload(hospital.people["submitter"], GOOD_ROWS)
        assert code(answer) == code(self.content(hospital, version)) == (503, "not_ready")
        path.with_name("elsewhere").replace(path)
        assert self.content(hospital, version).status_code == 200
        assert len(stored(hospital.database, File)) == 1

    def test_an_erased_hospital_stores_nothing_more(self, hospital: Hospital) -> None:
        person = hospital.people["submitter"]
        with hospital.database.transaction() as session:
            keyring.destroy_tenant(session, person.tenant_id)
        answer = hospital.upload(person, GOOD_ROWS)
        assert code(answer) == (409, "state_conflict")
        assert stored(hospital.database, File) == []


class TestRetention:
    def test_an_expired_file_is_gone_and_swept_up(self, either: Hospital) -> None:
        person = either.people["submitter"]
        fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
        shown = either.upload(person, GOOD_ROWS, **fields).json()
        assert shown["expires_at"] == shown["created_at"] + 3600
        with either.database.transaction() as session:
            session.get_one(File, shown["id"]).expires_at = now_us() - 1
        assert get(either, person, f"/v1/files/{shown['id']}").status_code == 404
        assert sweep(either.database, either.settings.files_dir) == 1
        assert files_on_disk(either) == []
        assert sweep(either.database, either.settings.files_dir) == 0

    def test_bytes_that_no_row_names_are_erased_once_they_are_old(self, hospital: Hospital) -> None:
        hospital.upload(hospital.people["submitter"], GOOD_ROWS)
        (kept,) = files_on_disk(hospital)
        (hospital.settings.files_dir / "upload-file-x.part").write_bytes(b"left by a crash")
        files_dir = hospital.settings.files_dir
        assert sweep(hospital.database, files_dir) == 0
        assert sweep(hospital.database, files_dir, orphan_age_seconds=0) == 1
        assert files_on_disk(hospital) == [kept]

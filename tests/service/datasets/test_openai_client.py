"""The unmodified `openai` client against a real server: files and models."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
import uvicorn

from service.logs import logging_configuration
from tests.service.hospital import GOOD_ROWS, Hospital, Person, open_hospital


@contextmanager
def served(hospital: Hospital) -> Iterator[str]:
    """The application behind a real socket, in a thread of this process."""
    config = uvicorn.Config(
        hospital.app, log_config=logging_configuration("ERROR"), access_log=False, lifespan="off"
    )
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            deadline = time.monotonic() + 20
            while not server.started and time.monotonic() < deadline:
                time.sleep(0.01)
            assert server.started
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join(timeout=20)


@pytest.fixture
def url(hospital: Hospital) -> Iterator[str]:
    with served(hospital) as address:
        yield address


def client_of(url: str, person: Person) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=url, api_key=person.key, organization="org-ignored", project="proj-ignored"
    )


class TestFiles:
    def test_are_uploaded_listed_retrieved_and_deleted(self, hospital: Hospital, url: str) -> None:
        dataset = hospital.dataset(hospital.people["steward"])
        with client_of(url, hospital.people["submitter"]) as client:
            made = client.files.create(
                file=("notes.jsonl", io.BytesIO(GOOD_ROWS)),
                purpose="fine-tune",
                extra_body={"dataset": dataset, "privacy": {"unit_field": "patient_id"}},
            )
            assert (made.status, made.filename, made.bytes) == (
                "processed",
                "notes.jsonl",
                len(GOOD_ROWS),
            )
            assert client.files.wait_for_processing(made.id).id == made.id
            assert client.files.retrieve(made.id).created_at == made.created_at
            assert [file.id for file in client.files.list(purpose="fine-tune")] == [made.id]
            assert client.files.delete(made.id).deleted
            with pytest.raises(openai.NotFoundError):
                client.files.retrieve(made.id)

    def test_of_many_clients_at_once_all_arrive(self, hospital: Hospital, url: str) -> None:
        person = hospital.people["submitter"]

        def upload(number: int) -> str:
            with client_of(url, person) as client:
                content = GOOD_ROWS * (1 + number)
                made = client.with_options(max_retries=0).files.create(
                    file=(f"{number}.jsonl", content), purpose="fine-tune"
                )
                assert made.bytes == len(content)
                return made.id

        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(upload, range(16)))
        listed = hospital.client.get("/v1/files?limit=100", headers=person.headers).json()
        assert {file["id"] for file in listed["data"]} == set(made)

    def test_are_paged_by_the_client_itself(self, hospital: Hospital, url: str) -> None:
        person = hospital.people["submitter"]
        made = [hospital.upload(person, GOOD_ROWS).json()["id"] for _ in range(5)]
        with client_of(url, person) as client:
            assert [file.id for file in client.files.list(limit=2, order="asc")] == made

    def test_expire_as_asked(self, hospital: Hospital, url: str) -> None:
        with client_of(url, hospital.people["submitter"]) as client:
            made = client.files.create(
                file=("notes.jsonl", GOOD_ROWS),
                purpose="fine-tune",
                expires_after={"anchor": "created_at", "seconds": 7200},
            )
        assert made.expires_at == made.created_at + 7200

    def test_content_is_for_stewards(self, hospital: Hospital, url: str) -> None:
        file_id = hospital.upload(hospital.people["submitter"], GOOD_ROWS).json()["id"]
        with client_of(url, hospital.people["submitter"]) as client:
            with pytest.raises(openai.PermissionDeniedError) as refused:
                client.files.content(file_id)
            assert refused.value.code == "training_data_sealed"
        with client_of(url, hospital.people["steward"]) as client:
            assert len(client.files.content(file_id).text.splitlines()) == 3

    @pytest.mark.parametrize("size", [60_000, 8_000_000])
    def test_over_the_limit_end_in_the_clients_own_error(self, tmp_path: Path, size: int) -> None:
        with (
            open_hospital(tmp_path, upload_bytes_max=1000) as hospital,
            served(hospital) as url,
            client_of(url, hospital.people["submitter"]) as client,
        ):
            with pytest.raises(openai.APIStatusError) as refused:
                client.files.create(file=("big.jsonl", b"x" * size), purpose="fine-tune")
            assert refused.value.status_code == 413
            assert refused.value.code == "body_too_large"


class TestModels:
    def test_are_listed_and_retrieved(self, hospital: Hospital, url: str) -> None:
        with client_of(url, hospital.people["submitter"]) as client:
            (model,) = client.models.list()
            assert model.id == "medtext-gpt2-4m"
            assert client.models.retrieve(model.id).owned_by == "rldp"
            with pytest.raises(openai.NotFoundError):
                client.models.retrieve("gpt-4o")


class TestErrors:
    def test_reach_the_client_in_its_own_shape(self, hospital: Hospital, url: str) -> None:
        with (
            client_of(url, hospital.people["submitter"]) as client,
            pytest.raises(openai.BadRequestError) as refused,
        ):
            client.files.create(file=("a.jsonl", GOOD_ROWS), purpose="batch")
        assert refused.value.code == "unsupported_option"
        assert refused.value.param == "purpose"
        assert refused.value.request_id is not None
        assert refused.value.request_id.startswith("req_")

    def test_an_unknown_key_is_an_authentication_error(self, hospital: Hospital, url: str) -> None:
        with (
            openai.OpenAI(base_url=url, api_key="rldp_none_none") as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()

    def test_a_conflict_is_not_repeated(self, hospital: Hospital, url: str) -> None:
        steward = hospital.people["steward"]
        dataset = hospital.dataset(steward)
        file_id = hospital.upload(steward, GOOD_ROWS, dataset=dataset).json()["id"]
        with (
            client_of(url, steward) as client,
            pytest.raises(openai.ConflictError) as refused,
        ):
            client.post(f"/datasets/{dataset}/versions", body={"file": file_id}, cast_to=object)
        assert refused.value.response.request.headers["x-stainless-retry-count"] == "0"

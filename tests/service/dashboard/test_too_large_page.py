"""A file over the limit: a page that says what to do, not the bare answer of the API."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.service.dashboard.test_pages import sign_in
from tests.service.hospital import open_hospital

FORM = {"content-type": "multipart/form-data; boundary=abc"}


@pytest.mark.parametrize("is_declared", [True, False])
def test_people_get_a_page_and_programs_a_problem(tmp_path: Path, is_declared: bool) -> None:
    """By its declared length, and while it streams."""
    with open_hospital(tmp_path, upload_bytes_max=1000) as hospital:
        client = TestClient(hospital.app, base_url="http://127.0.0.1", follow_redirects=False)
        sign_in(client, hospital.people["submitter"].key)
        content = b"x" * 200_000
        answer = client.post(
            "/files", content=content if is_declared else iter([content]), headers=FORM
        )
        assert answer.status_code == 413
        assert answer.headers["content-type"].startswith("text/html")
        assert "at most 1000 bytes" in answer.text and "Split the file" in answer.text
        api = client.post("/v1/files", content=content, headers=FORM)
        assert (api.status_code, api.json()["error"]["code"]) == (413, "body_too_large")
        assert list(hospital.settings.files_dir.iterdir()) == []

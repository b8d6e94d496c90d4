"""POST /v1/chat/completions and the page's form: who, what, and that nothing of it is kept."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from service.auth.keys import issue_key
from service.chat.endpoints import speaker_of
from service.chat.schemas import ChatRequest
from service.chat.speaker import WAITING_MAX, Speaker
from service.dashboard import chat_box
from service.errors import ServiceError
from service.ledger.models import Entry
from tests.service.chat.conftest import name_of
from tests.service.dashboard.scene import Scene
from tests.service.dashboard.test_pages import _token, sign_in
from tests.service.ledger import world as w

CANARY = "canary-8123"
SAID = f"{CANARY} adapter_config.json,adapter_model.safetensors"
PATH = "/v1/chat/completions"


def ask(scene: Scene, key: str, content: str = CANARY, **more: Any) -> httpx2.Response:
    body: dict[str, Any] = {
        "model": name_of(scene, scene.released),
        "messages": [{"role": "user", "content": content}],
    }
    headers = {"Authorization": f"Bearer {key}"}
    return scene.client().post(PATH, json=body | more, headers=headers)


def code(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


class TestRoute:
    @pytest.mark.parametrize("role", ["submitter", "steward"])
    def test_those_who_may_take_the_adapter_may_talk_to_it(self, scene: Scene, role: str) -> None:
        answer = ask(scene, scene.keys[role])
        assert answer.status_code == 200
        told = answer.json()
        assert told["choices"][0]["message"]["content"] == SAID
        assert told["choices"][0]["finish_reason"] == "stop"
        assert told["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}

    def test_a_stream_has_openais_chunks(self, scene: Scene) -> None:
        answer = ask(scene, scene.keys["submitter"], stream=True)
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line[6:] for line in answer.text.split("\n\n") if line]
        chunks = [json.loads(line)["choices"][0] for line in lines[:-1]]
        assert lines[-1] == "[DONE]" and chunks[-1]["finish_reason"] == "stop"
        assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == SAID

    def test_what_is_not_released_or_not_yours_does_not_speak(self, scene: Scene) -> None:
        job = w.run_job(scene.world, run_plan=w.plan())
        assert job  # settled in the ledger alone: no adapter of that name
        for name in (name_of(scene, scene.running), "ft:a:b:c:d", "medtext-gpt2-4m", "x"):
            assert code(ask(scene, scene.keys["submitter"], model=name)) == (404, "not_found")
        other = w.found(scene.world.db)
        with scene.world.db.transaction() as session:
            key = issue_key(session, other.proposer).text
        assert code(ask(scene, key)) == (404, "not_found")
        for role in ("auditor", "admin"):
            assert code(ask(scene, scene.keys[role])) == (403, "role_forbidden")

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"max_tokens": 513}, "field_invalid"),
            ({"max_completion_tokens": 0}, "field_invalid"),
            ({"messages": []}, "field_invalid"),
            ({"messages": [{"role": "user", "content": "x" * 8001}]}, "field_invalid"),
            ({"messages": [{"role": "tool", "content": "x"}]}, "field_invalid"),
            ({"n": 2}, "field_invalid"),
            ({"temperature": -1}, "field_invalid"),
            ({"tools": []}, "unknown_field"),
        ],
    )
    def test_what_a_playground_cannot_do_is_refused(
        self, scene: Scene, change: dict[str, Any], expected: str
    ) -> None:
        assert code(ask(scene, scene.keys["submitter"], **change))[1] == expected

    def test_each_use_is_in_the_access_log_and_no_word_of_it(
        self, scene: Scene, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level("DEBUG"):
            ask(scene, scene.keys["submitter"])
        with scene.world.db.reading() as session:
            reads = select(Entry).where(Entry.type == "access.read").order_by(Entry.idx.desc())
            newest = session.scalars(reads.limit(1)).one()
            everything = "".join(session.scalars(select(Entry.body)))
        data = json.loads(newest.body)["data"]
        assert (data["route"], data["object"]) == (PATH, scene.released)
        assert CANARY not in everything and CANARY not in caplog.text

    def test_it_can_be_switched_off(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(scene.settings, "chat", False)
        assert code(ask(scene, scene.keys["submitter"])) == (400, "unsupported_option")
        client = _signed(scene, "submitter")
        assert 'id="try"' not in client.get(f"/jobs/{scene.released}").text
        assert client.get(f"/jobs/{scene.released}/chat").status_code == 404


class TestSpeaker:
    @pytest.mark.parametrize("prompt", ["fail", "crash"])
    def test_a_failure_tells_nothing_and_the_next_question_is_answered(
        self, scene: Scene, prompt: str
    ) -> None:
        refused = ask(scene, scene.keys["submitter"], prompt)
        assert code(refused) == (503, "not_ready")
        assert ask(scene, scene.keys["submitter"]).status_code == 200

    def test_a_failure_in_a_stream_is_an_event_of_it(self, scene: Scene) -> None:
        told = ask(scene, scene.keys["submitter"], "crash", stream=True).text
        assert '"code": "not_ready"' in told and told.endswith("data: [DONE]\n\n")

    def test_who_stops_reading_frees_the_model(self, scene: Scene) -> None:
        talk = _talk(scene, "endless")
        steps = talk.answers()
        assert next(steps) == {"text": "x"}
        steps.close()
        assert ask(scene, scene.keys["submitter"]).status_code == 200

    def test_a_full_queue_asks_to_come_again(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        speaker = Speaker()
        monkeypatch.setattr(speaker, "_serve", threading.Event().wait)
        asked = ChatRequest.model_validate({"model": "m", "messages": [_turn("user", "x")]})
        model = _talk(scene, CANARY).model
        for _ in range(WAITING_MAX):
            speaker.ask(model, asked)
        with pytest.raises(ServiceError, match="busy") as refused:
            speaker.ask(model, asked)
        assert refused.value.status == 503


class TestPage:
    def test_the_answer_comes_as_a_page_or_as_words(self, scene: Scene) -> None:
        client = _signed(scene, "submitter")
        html = client.get(f"/jobs/{scene.released}").text
        assert 'id="try"' in html
        form = {"form_token": _token(html.partition("<main")[2]), "prompt": CANARY, "tokens": "9"}
        path = f"/jobs/{scene.released}/chat"
        assert SAID in client.post(path, data=form).text
        words = client.post(path, data=form, headers={"Accept": "text/plain"})
        assert (words.text, words.headers["content-type"][:10]) == (SAID, "text/plain")
        for change in ({"tokens": "0"}, {"tokens": "many"}, {"prompt": ""}):
            assert client.post(path, data=form | change).status_code == 422
        assert client.post(path, data=form | {"form_token": "0" * 64}).status_code == 400
        assert client.post(path, data=form | {"prompt": "crash"}).text.count("no answer") == 1

    def test_only_owners_of_a_released_adapter_see_it(self, scene: Scene) -> None:
        assert 'id="try"' not in _signed(scene, "admin").get(f"/jobs/{scene.released}").text
        client = _signed(scene, "steward")
        assert 'id="try"' not in client.get(f"/jobs/{scene.running}").text
        form = {"form_token": _token(client.get("/").text), "prompt": "x"}
        assert client.post(f"/jobs/{scene.running}/chat", data=form).status_code == 404
        assert _signed(scene, "admin").get(f"/jobs/{scene.released}/chat").status_code == 404

    def test_without_libraries_beside_it_no_form_is_shown(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(chat_box, "has_runtime", lambda: False)
        assert 'id="try"' not in _signed(scene, "submitter").get(f"/jobs/{scene.released}").text


def test_a_prompt_has_the_form_of_the_rows_that_were_trained() -> None:
    def prompt(*turns: dict[str, str], **more: str) -> str:
        return ChatRequest.model_validate({"model": "m", "messages": turns, **more}).prompt()

    user = _turn("user", "What now?")
    assert prompt(user) == "What now?"
    assert prompt(user, template="chat") == "User: What now?\nAssistant:"
    assert prompt(_turn("system", "Be brief."), user) == (
        "System: Be brief.\nUser: What now?\nAssistant:"
    )


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _signed(scene: Scene, role: str) -> TestClient:
    client = scene.client()
    sign_in(client, scene.keys[role])
    return client


def _talk(scene: Scene, prompt: str) -> Any:
    from service.auth.subject import Subject
    from service.chat.released import released_model

    who = Subject(principal_id=scene.world.submitter, tenant_id=scene.world.tenant, role="steward")
    name = name_of(scene, scene.released)
    with scene.world.db.reading() as session:
        model = released_model(session, scene.settings, who, name)
    asked = ChatRequest.model_validate({"model": name, "messages": [_turn("user", prompt)]})
    return speaker_of(scene.app).ask(model, asked)

"""A real adapter on the packaged model, asked by the unmodified `openai` client over HTTP."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from sqlalchemy import update

from dp_core.model_files import model_digest, sha256_of
from service.artifacts.models import Artifact
from service.chat.endpoints import speaker_of
from service.demo import models as packaged
from service.jobs.models import Job
from tests.browser.conftest import served
from tests.service.chat.conftest import name_of
from tests.service.dashboard.scene import Scene, open_scene

pytestmark = pytest.mark.ci


PROMPT = "The patient was admitted with"
TOKENS = 12


def _give_a_real_adapter(scene: Scene, directory: Path) -> str:
    """In place of the scene's empty files, what a trainer would have left; the base's own words."""
    import torch

    from dp_core.artifact import adapter_files
    from dp_core.base_model import load_base
    from dp_core.lora import attach_adapters
    from dp_core.plan import AdapterPlan

    base, tokenizer = load_base(packaged.path())
    tokens = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    plain = base.generate(input_ids=tokens, max_new_tokens=TOKENS, do_sample=False)
    model = attach_adapters(base, AdapterPlan(r=4, alpha=8), seed=1)
    torch.manual_seed(3)
    for name, tensor in model.named_parameters():
        if "lora_B" in name:  # zero at first, when an adapter changes nothing
            torch.nn.init.normal_(tensor, std=0.5)
    (directory / "adapter").mkdir()
    files = adapter_files(model, base_model_name="medtext-gpt2-4m")
    with scene.world.db.transaction() as session:
        job = session.get_one(Job, scene.released)
        plan = json.loads(job.plan) | {
            "base_model_digest": model_digest(packaged.path(), sha256_of)
        }
        job.plan = json.dumps(plan)
        for name, content in files.items():
            path = directory / "adapter" / name
            path.write_bytes(content)
            session.execute(
                update(Artifact)
                .where(Artifact.job_id == scene.released, Artifact.name == name)
                .values(path=str(path), sha256=hashlib.sha256(content).hexdigest())
            )
    return str(tokenizer.decode(plain[0, tokens.shape[1] :], skip_special_tokens=True))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Scene, str, str]]:
    directory = tmp_path_factory.mktemp("real")
    with open_scene(directory) as scene:
        base_says = _give_a_real_adapter(scene, directory)
        with served(scene) as address:
            yield scene, address, base_says
        speaker_of(scene.app).close()


def client_of(site: tuple[Scene, str, str], role: str = "submitter") -> openai.OpenAI:
    scene, address, _ = site
    return openai.OpenAI(
        api_key=scene.keys[role], base_url=f"{address}/v1", max_retries=0, timeout=240
    )


def test_the_client_gets_an_answer_and_the_same_one_under_its_seed(
    site: tuple[Scene, str, str],
) -> None:
    def answer(seed: int) -> openai.types.chat.ChatCompletion:
        return client_of(site).chat.completions.create(
            model=name_of(site[0], site[0].released),
            messages=[{"role": "user", "content": PROMPT}],
            max_tokens=TOKENS,
            temperature=1.0,
            seed=seed,
        )

    first, again, other = answer(7), answer(7), answer(8)
    texts = [told.choices[0].message.content for told in (first, again, other)]
    assert texts[0] and texts[0] == texts[1] != texts[2]
    assert first.usage is not None and first.usage.completion_tokens == TOKENS
    assert first.choices[0].finish_reason == "length"


def test_the_client_reads_a_stream_that_says_the_same(site: tuple[Scene, str, str]) -> None:
    asked = {
        "model": name_of(site[0], site[0].released),
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": TOKENS,
        "temperature": 0,
    }
    whole = client_of(site).chat.completions.create(**asked)  # type: ignore[call-overload]
    stream = client_of(site).chat.completions.create(**asked, stream=True)  # type: ignore[call-overload]
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len([piece for piece in pieces if piece]) > 3
    assert whole.choices[0].message.content != site[2]  # the adapter speaks, not its base


def test_the_client_is_told_why_not(site: tuple[Scene, str, str]) -> None:
    with pytest.raises(openai.NotFoundError):
        client_of(site).chat.completions.create(
            model=name_of(site[0], site[0].running),
            messages=[{"role": "user", "content": "x"}],
        )
    with pytest.raises(openai.PermissionDeniedError):
        client_of(site, "auditor").chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}]
        )

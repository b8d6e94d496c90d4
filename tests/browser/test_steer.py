"""An admin steers the queue and a submitter talks to a released adapter, in a real browser."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from service.chat import speaker
from service.chat.endpoints import speaker_of
from tests.browser.conftest import served
from tests.browser.visits import open_visit
from tests.service.dashboard.scene import Scene, open_scene
from tests.service.jobs import world as jw

FAKE = (sys.executable, "-m", "tests.service.chat.fake_process")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Scene, str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speaker, "COMMAND", FAKE)
        with open_scene(tmp_path_factory.mktemp("own")) as scene, served(scene) as address:
            yield scene, address
            speaker_of(scene.app).close()


@pytest.mark.parametrize("scripts", [True, False])
def test_an_admin_pauses_resumes_and_cancels_from_the_first_page(
    browser: Browser, own: tuple[Scene, str], scripts: bool
) -> None:
    scene, address = own
    job = jw.queue_job(scene.world)
    name = f"…{job[-6:]}"
    visit = open_visit(browser, address, java_script_enabled=scripts)
    visit.sign_in(scene.keys["admin"])
    page = visit.page
    page.get_by_role("button", name=f"Pause ftjob-{name}").click()
    expect(page.get_by_role("button", name=f"Resume ftjob-{name}")).to_be_visible(timeout=30_000)
    assert jw.state(scene.world.db, job) == "paused" and page.url == f"{address}/"
    page.get_by_role("button", name=f"Resume ftjob-{name}").click()
    expect(page.get_by_role("button", name=f"Pause ftjob-{name}")).to_be_visible(timeout=30_000)
    page.get_by_role("link", name=f"Cancel ftjob-{name}").click()
    expect(page.get_by_role("heading", name="Cancel this job?")).to_be_visible(timeout=30_000)
    assert jw.state(scene.world.db, job) == "queued"
    page.get_by_role("button", name="Cancel the job").click()
    page.wait_for_url(f"{address}/jobs/{job}")
    assert jw.state(scene.world.db, job) == "cancelled"
    assert (visit.complaints, visit.outside) == ([], [])
    page.context.close()


@pytest.mark.parametrize("scripts", [True, False])
def test_a_submitter_talks_to_a_released_adapter(
    browser: Browser, own: tuple[Scene, str], scripts: bool
) -> None:
    scene, address = own
    visit = open_visit(browser, address, java_script_enabled=scripts)
    visit.sign_in(scene.keys["submitter"])
    page = visit.page
    page.goto(f"{address}/jobs/{scene.released}")
    page.get_by_label("Prompt").fill("Hello there")
    page.get_by_role("button", name="Ask").click()
    answer = page.get_by_text("Hello there adapter_config.json,adapter_model.safetensors")
    expect(answer).to_be_visible(timeout=60_000)
    assert page.url.endswith(scene.released if scripts else "/chat")
    assert (visit.complaints, visit.outside) == ([], [])
    page.context.close()

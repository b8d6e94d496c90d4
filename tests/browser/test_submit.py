"""A submitter's whole way in the browser, with scripts and without: upload to certificate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.conftest import served
from tests.browser.visits import Visit, open_visit
from tests.service.dashboard.scene import Scene, open_scene
from tests.service.hospital import GOOD_ROWS

BAD_ROWS = b'{"patient_id": "p1", "text": "fine"}\n{"patient_id": "p2", "note": "canary-4711"}\n'


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Scene, str]]:
    """A scene that these tests write to, and its address."""
    with open_scene(tmp_path_factory.mktemp("own")) as scene, served(scene) as address:
        yield scene, address


def _upload(visit: Visit, folder: Path, content: bytes) -> None:
    path = folder / "notes.jsonl"
    path.write_bytes(content)
    visit.page.goto(f"{visit.home}/files")
    visit.page.get_by_label("File", exact=True).set_input_files(path)
    visit.page.get_by_role("button", name="Upload and check").click()
    visit.page.wait_for_url(f"{visit.home}/files/*")


def _set(visit: Visit, steps: str) -> None:
    page = visit.page
    page.get_by_label("Steps", exact=True).fill(steps)
    page.get_by_label("Patients a step, on average", exact=True).fill("1000")
    if not page.get_by_label("Noise").is_visible():
        page.get_by_text("More settings").click()
    page.get_by_label("Noise").select_option("adaptive_sigma")


def _to_the_price(visit: Visit, folder: Path, steps: str) -> None:
    """From a mended file to the settings, filled in."""
    _upload(visit, folder, BAD_ROWS)
    page = visit.page
    expect(page.get_by_role("row", name="field_missing")).to_be_visible()
    assert "canary" not in page.content()
    _upload(visit, folder, GOOD_ROWS)
    page.get_by_role("link", name="New job with it").click()
    _set(visit, steps)


def test_with_scripts_the_price_follows_the_sliders(
    browser: Browser, own: tuple[Scene, str], tmp_path: Path, pictures: Path
) -> None:
    scene, address = own
    visit = open_visit(browser, address, viewport={"width": 1280, "height": 900})
    visit.sign_in(scene.keys["submitter"])
    _to_the_price(visit, tmp_path, "400")
    page = visit.page
    slider = page.get_by_label("ε of this job, slider")
    prices = []
    for epsilon in ("3", "4"):
        slider.fill(epsilon)
        expect(page.locator("#estimate p.big")).to_contain_text(f"ε {epsilon} ", timeout=30_000)
        prices.append(page.locator("#estimate .legend").first.inner_text())
    assert prices[0] != prices[1]
    assert page.get_by_label("ε of this job", exact=True).input_value() == "4"
    page.screenshot(path=pictures / "submit-light-1280.png", full_page=True)
    page.get_by_role("button", name="Submit this job").dblclick()
    page.wait_for_url(f"{address}/jobs/ftjob-*")
    job = page.url.rpartition("/")[2]
    page.goto(f"{address}/jobs")
    expect(page.locator(f"a[href='/jobs/{job}']")).to_be_visible()
    assert page.get_by_text("adaptive").count() == 0
    assert page.locator("tbody tr").count() == 4  # the scene's three and one new
    assert (visit.complaints, visit.outside) == ([], [])
    page.context.close()


def test_without_scripts_a_button_does_the_same(
    browser: Browser, own: tuple[Scene, str], tmp_path: Path
) -> None:
    scene, address = own
    visit = open_visit(browser, address, java_script_enabled=False)
    visit.sign_in(scene.keys["submitter"])
    _to_the_price(visit, tmp_path, "410")
    page = visit.page
    page.get_by_label("ε of this job").first.fill("4")
    page.get_by_role("button", name="Estimate").click()
    expect(page.locator("#estimate p.big")).to_contain_text("ε 4 ")
    page.get_by_role("button", name="Submit this job").click()
    page.wait_for_url(f"{address}/jobs/ftjob-*")
    expect(page.get_by_text("Waiting for a free worker.", exact=True)).to_be_visible()
    page.goto(f"{address}/jobs/{scene.released}")
    with page.expect_download() as taken:
        page.get_by_role("link", name="adapter_config.json").click()
    assert taken.value.suggested_filename == "adapter_config.json"
    page.get_by_role("link", name="Whole certificate and PDF").click()
    expect(page.get_by_role("heading", name="Privacy certificate")).to_be_visible()
    page.context.close()

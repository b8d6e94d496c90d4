"""The admin's first page: what runs, what waits and why, workers, failures with advice."""

from __future__ import annotations

import re

from fastapi.testclient import TestClient

from service.dashboard.charts import sparkline
from service.jobs import leases
from service.jobs.lifecycle import Reason
from tests.service.dashboard.scene import Scene
from tests.service.dashboard.test_pages import sign_in
from tests.service.jobs import world as jw


def admin_of(scene: Scene) -> TestClient:
    client = scene.client()
    sign_in(client, scene.keys["admin"])
    return client


def section(html: str, name: str) -> str:
    """The words of a section, without its tags."""
    found = re.search(rf'<section aria-labelledby="{name}">(.*?)</section>', html, re.DOTALL)
    assert found is not None, name
    return " ".join(re.sub(r"<[^>]*>", " ", found[1]).split())


def test_running_waiting_and_workers_stand_on_one_page(scene: Scene) -> None:
    html = admin_of(scene).get("/").text
    assert f'href="/jobs/{scene.running}"' in html
    running = section(html, "running")
    assert "70 of 120" in running and "of ε" in running and "Pause" in running
    assert 'class="spark"' in html
    assert scene.waiting[-6:] in section(html, "queue")
    workers = section(html, "workers")
    assert scene.running[-6:] in workers and "busy" in workers and "CPU, 2 cores" in workers
    assert "held" in section(html, "budgets")
    assert "Job is running." in section(html, "events")


def test_a_failure_comes_with_advice_and_its_job(own: Scene) -> None:
    job = jw.queue_job(own.world)
    claim = leases.claim(own.world.db, worker_id="wk_demo", job_id=job)
    assert claim is not None
    leases.fail_attempt(own.world.db, job, claim.epoch, Reason.OUT_OF_MEMORY, True)
    told = section(admin_of(own).get("/").text, "failures")
    assert "out of memory" in told and "RLDP_MICROBATCH_PATIENTS" in told and job[-6:] in told


def test_other_roles_have_their_own_overview_and_no_operations_part(scene: Scene) -> None:
    for role in ("submitter", "steward", "auditor"):
        client = scene.client()
        sign_in(client, scene.keys[role])
        assert 'id="workers"' not in client.get("/").text
        assert client.get("/live/operations").status_code == 404
        assert client.get("/live/stream?workers=1").status_code == 404
    assert scene.client().get("/live/operations").status_code == 401


def test_the_live_part_is_the_page_without_its_token(scene: Scene) -> None:
    client = admin_of(scene)
    part = client.get("/live/operations")
    assert part.status_code == 200 and "form_token" not in part.text
    assert section(part.text, "running") == section(client.get("/").text, "running")


def test_a_sparkline_keeps_its_ends_and_needs_two_points() -> None:
    assert sparkline([(1, 2.0)], steps_max=10) is None
    drawn = sparkline([(step, 5.0 - step / 1000) for step in range(1001)], steps_max=1000)
    assert drawn is not None and drawn.said == "from 5.000 to 4.000"
    assert drawn.line.count("L") <= 31 and drawn.line.endswith("80.0,19.0")

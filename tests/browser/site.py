"""A scene with something on every page, served over HTTP, and where those pages are."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from playwright.sync_api import Browser
from sqlalchemy.orm import Session

from service.fleet import registry
from service.jobs import leases
from service.jobs.lifecycle import Reason
from service.ledger import releases
from service.ledger import service as ledger
from service.ledger.publisher import make_publisher
from service.ledger.rotation import public_hex
from service.ledger.stewards import steward_text
from service.membership import invitations
from tests.browser.conftest import served
from tests.browser.visits import open_visit
from tests.service.dashboard.scene import Scene, interrupted_job, open_scene
from tests.service.dashboard.test_submit_pages import BAD_ROWS
from tests.service.jobs import world as jw
from tests.service.ledger import world as w


@dataclass(frozen=True)
class Site:
    """A scene with something on every page, its address, and the ids of what was added."""

    scene: Scene
    address: str
    interrupted: str
    bad_file: str


def _fill(scene: Scene) -> None:
    """A release and a grant that wait, a refusal, several checkpoints, workers, a failure."""
    db = scene.world.db
    for name, device in (("wk_idle", "NVIDIA H100 80GB HBM3"), ("wk_tired", "CPU, 2 cores")):
        registry.join(db, name, device=device, version="0.1.0", beat_seconds=3600)
    with db.transaction() as session:
        registry.drain(session, "wk_tired")
    lost = jw.queue_job(scene.world)
    claim = leases.claim(db, worker_id="wk_idle", job_id=lost)
    assert claim is not None
    leases.fail_attempt(db, lost, claim.epoch, Reason.OUT_OF_MEMORY, True)
    publisher = make_publisher(scene.settings, scene.world.db)
    publisher.turn()
    job = w.run_job(scene.world, run_plan=w.plan())
    w.propose(scene.world, scene.world.population, "14")
    with scene.world.db.transaction() as session:
        releases.request_release(
            session, tenant_id=scene.world.tenant, actor=scene.world.proposer, job_id=job
        )
        ledger.record_refusal(
            session,
            tenant_id=scene.world.tenant,
            actor=scene.world.submitter,
            population_id=scene.world.population,
            job_reference="refusal/x/1",
            needed_pico=5_200_000_000_000,
            free_pico=2_477_006_613_828,
        )
        _invite(session, scene, "auditor")
        waiting, key = _invite(session, scene, "steward"), Ed25519PrivateKey.generate()
        text = steward_text(principal=waiting.person.id, key=public_hex(key))
        invitations.accept(
            session,
            waiting.token,
            public_key=public_hex(key),
            possession=base64.b64encode(key.sign(text)).decode(),
        )
    publisher.turn()


def _invite(session: Session, scene: Scene, role: invitations.Role) -> invitations.Invited:
    tenant, admin = scene.world.tenant, scene.world.admin
    return invitations.invite(session, tenant_id=tenant, role=role, invited_by=admin)


def pages_of(site: Site) -> dict[str, tuple[tuple[str, str], ...]]:
    """Each role's pages: name and path."""
    scene = site.scene
    priced = "ask=1&steps=400&batch=1000&mode=adaptive_sigma"
    job_pages = (
        ("job-running", f"/jobs/{site.interrupted}"),
        ("job-waiting", f"/jobs/{scene.waiting}"),
        ("job-released", f"/jobs/{scene.released}"),
    )
    return {
        "submitter": (
            ("submitter-overview", "/"),
            ("submit", "/submit"),
            ("submit-priced", f"/submit?file={scene.file}&model=medtext-gpt2-4m&{priced}"),
            ("submit-refused", f"/submit?file={scene.file}&model=none&epsilon=x&steps=-1&ask=1"),
            ("jobs", "/jobs"),
            ("files", "/files"),
            ("file-errors", f"/files/{site.bad_file}"),
            ("file-ready", f"/files/{scene.file}"),
            *job_pages,
            ("chat", f"/jobs/{scene.released}/chat"),
        ),
        "steward": (("overview", "/"), ("approvals", "/approvals"), ("people", "/people")),
        "auditor": (
            ("auditor-overview", "/"),
            ("ledger", "/ledger"),
            ("population", f"/populations/{scene.world.population}"),
            ("check", f"/ledger/jobs/{scene.released}/check"),
            ("certificate", f"/certificates/{scene.released}"),
            ("refusals", "/ledger/refusals"),
            ("proofs", "/ledger/proofs?entry=3"),
            ("access", "/ledger/access"),
            ("not-found", "/jobs/ftjob-none"),
        ),
        "admin": (
            ("operations", "/"),
            ("admin-jobs", "/jobs"),
            ("admin-people", "/people"),
            ("accept", "/accept"),
            ("cancel", f"/jobs/{site.interrupted}/cancel"),
        ),
    }


@contextmanager
def open_site(directory: Path, browser: Browser) -> Iterator[Site]:
    with open_scene(directory) as scene:
        _fill(scene)
        job = interrupted_job(scene.world)
        with served(scene) as address:
            visit = open_visit(browser, address)
            visit.sign_in(scene.keys["submitter"])
            visit.page.goto(f"{address}/files")
            visit.page.get_by_label("File", exact=True).set_input_files(
                {"name": "notes.jsonl", "mimeType": "application/jsonl", "buffer": BAD_ROWS}
            )
            visit.page.get_by_role("button", name="Upload and check").click()
            visit.page.wait_for_url(f"{address}/files/*")
            bad_file = visit.page.url.rpartition("/")[2]
            visit.page.context.close()
            yield Site(scene, address, job, bad_file)

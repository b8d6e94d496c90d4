"""The scene with a stand-in for the process that speaks."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from service.chat import speaker
from service.chat.endpoints import speaker_of
from service.jobs.repository import visible_job
from service.jobs.views import fine_tuned_model
from tests.service.dashboard.scene import Scene, open_scene


@pytest.fixture(scope="package")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with pytest.MonkeyPatch.context() as patch:
        fake = (sys.executable, "-m", "tests.service.chat.fake_process")
        patch.setattr(speaker, "COMMAND", fake)
        with open_scene(tmp_path_factory.mktemp("chat")) as made:
            yield made
            speaker_of(made.app).close()


def name_of(scene: Scene, job_id: str) -> str:
    """The adapter's name, as the job's own answer tells it."""
    from service.auth.subject import Subject

    who = Subject(principal_id=scene.world.admin, tenant_id=scene.world.tenant, role="admin")
    with scene.world.db.reading() as session:
        return fine_tuned_model(visible_job(session, who, job_id))

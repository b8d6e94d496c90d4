"""`rldp data`: what lay in clear is sealed in place; an erased hospital is gone, copies too."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.artifacts.models import Artifact
from service.artifacts.service import stored_file
from service.cli import app
from service.database import Database, now_us
from service.datasets.files import stored_rows
from service.datasets.models import DatasetVersion, File
from service.jobs import leases, runtime
from service.jobs.at_rest import erase_tenant, seal_old_files
from service.jobs.errors import StateConflict
from service.jobs.keys import load_keys
from service.jobs.models import Job
from service.sealing.errors import KeyDestroyed
from service.sealing.keyring import Keyring
from service.sealing.models import DataKey, TenantKey
from service.settings import Settings
from service.worker.checkpoints import DirectoryCheckpoints, digest_of
from tests.service.jobs import world as w
from tests.service.ledger import world as lw

CANARY = b"qzcanaryxk"
ROWS = b'{"unit":"p1","text":"' + CANARY + b'"}\n'


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(data_dir=tmp_path / "data")
    made.files_dir.mkdir(parents=True)
    made.jobs_dir.mkdir()
    return made


@pytest.fixture
def world(settings: Settings) -> Iterator[lw.World]:
    import service.models

    database = Database(settings.resolved_database_url)
    service.models.metadata.create_all(database.engine)
    yield lw.open_world(database)
    database.dispose()


def clear_upload(world: lw.World, settings: Settings) -> tuple[str, str]:
    """As a release before stored it: (file, version)."""
    file_id, version = w.add_dataset(world, settings.files_dir)
    digest = hashlib.sha256(ROWS).hexdigest()
    with world.db.transaction() as session:
        file = session.get_one(File, file_id)
        assert file.blob_path is not None
        Path(file.blob_path).write_bytes(ROWS)
        file.blob_sha256 = session.get_one(DatasetVersion, version).sha256 = digest
    return file_id, version


def clear_job(world: lw.World, settings: Settings, version: str, *, ended: bool) -> str:
    """A job with a checkpoint and an adapter in clear."""
    folder = settings.jobs_dir / "job"
    claim = w.claimed_job(world, version=version, job_dir=str(folder))
    files = {"state.json": CANARY, "policy/weights": CANARY}
    step = folder / "attempt-1" / "step-2"
    for name, content in files.items():
        (step / name).parent.mkdir(parents=True, exist_ok=True)
        (step / name).write_bytes(content)
    runtime.record_checkpoint(
        world.db,
        claim.job_id,
        claim.epoch,
        step=2,
        window=0,
        directory=str(step),
        sha256=digest_of(files),
    )
    (folder / "adapter_config.json").write_bytes(CANARY)
    with world.db.transaction() as session:
        session.add(
            Artifact(
                id="art_1",
                tenant_id=world.tenant,
                job_id=claim.job_id,
                name="adapter_config.json",
                path=str(folder / "adapter_config.json"),
                sha256=hashlib.sha256(CANARY).hexdigest(),
                size_bytes=len(CANARY),
                created_at=now_us(),
            )
        )
    if ended:
        leases.fail_attempt(world.db, claim.job_id, claim.epoch, "data_unreadable", True)
    return claim.job_id


def holding(settings: Settings) -> list[str]:
    """Names of files below the data folder that hold the canary in clear."""
    found = (p for p in settings.data_dir.rglob("*") if p.is_file() and CANARY in p.read_bytes())
    return sorted(p.name for p in found)


def read_rows(world: lw.World, settings: Settings, version: str) -> bytes:
    with world.db.reading() as session:
        path = Path(session.get_one(DatasetVersion, version).path)
        stored = stored_rows(session, Keyring.of(settings), version, path)
    with stored.open() as stream:
        return stream.read()


class TestSealing:
    def test_uploads_stay_readable_before_and_after(
        self, world: lw.World, settings: Settings
    ) -> None:
        _, version = clear_upload(world, settings)
        assert read_rows(world, settings, version) == ROWS
        done = seal_old_files(world.db, settings)
        assert (done.uploads, done.damaged, done.running) == (1, (), ())
        assert holding(settings) == []
        assert read_rows(world, settings, version) == ROWS
        assert [p.name for p in settings.files_dir.iterdir()] == [f"{version}.sealed"]
        assert seal_old_files(world.db, settings).uploads == 0

    def test_an_upload_that_does_not_fit_its_digest_is_left_and_told(
        self, world: lw.World, settings: Settings
    ) -> None:
        file_id, version = clear_upload(world, settings)
        with world.db.transaction() as session:
            session.get_one(File, file_id).blob_sha256 = "0" * 64
        done = seal_old_files(world.db, settings)
        assert (done.uploads, done.damaged) == (0, (file_id,))
        assert read_rows(world, settings, version) == ROWS
        with world.db.reading() as session:
            assert session.query(DataKey).count() == 0

    def test_checkpoints_and_adapters_of_ended_jobs(
        self, world: lw.World, settings: Settings
    ) -> None:
        _, version = clear_upload(world, settings)
        job_id = clear_job(world, settings, version, ended=True)
        assert seal_old_files(world.db, settings).job_files == 3
        assert holding(settings) == []
        with world.db.reading() as session:
            secret = Keyring.of(settings).find(session, job_id)
            artifact = session.get_one(Artifact, "art_1")
        with stored_file(artifact, secret).open() as stream:
            assert stream.read() == CANARY
        assert seal_old_files(world.db, settings).job_files == 0

    def test_a_running_job_is_left_and_its_clear_checkpoint_resumes(
        self, world: lw.World, settings: Settings
    ) -> None:
        _, version = clear_upload(world, settings)
        job_id = clear_job(world, settings, version, ended=False)
        done = seal_old_files(world.db, settings)
        assert (done.job_files, done.running) == (0, (job_id,))
        keys = load_keys(world.db, Keyring.of(settings), job_id, 1)
        with keys.rows.open() as stream:
            assert stream.read() == ROWS
        store = DirectoryCheckpoints(
            world.db, job_id=job_id, epoch=1, job_dir=settings.jobs_dir / "job", files=keys.files
        )
        loaded = store.load_latest()
        assert loaded == {"state.json": CANARY, "policy/weights": CANARY}


class TestErasure:
    def test_takes_keys_files_and_folders_and_copies_stay_shut(
        self, world: lw.World, settings: Settings, tmp_path: Path
    ) -> None:
        _, version = clear_upload(world, settings)
        clear_job(world, settings, version, ended=True)
        seal_old_files(world.db, settings)
        aside = tmp_path / "snapshot"
        shutil.copytree(settings.files_dir, aside)
        done = erase_tenant(world.db, settings, world.tenant)
        assert (done.keys, done.files, done.job_folders) == (2, 1, 1)
        assert list(settings.files_dir.iterdir()) == list(settings.jobs_dir.iterdir()) == []
        (copy,) = aside.iterdir()
        copy.rename(settings.files_dir / copy.name)  # somebody puts the backup back
        with pytest.raises(KeyDestroyed):
            read_rows(world, settings, version)
        with world.db.reading() as session:
            assert session.query(DataKey).count() == 0
            assert session.get_one(TenantKey, world.tenant).wrapped is None
            assert session.query(File).one().deleted_at is not None

    def test_waits_for_the_end_of_jobs(self, world: lw.World, settings: Settings) -> None:
        _, version = clear_upload(world, settings)
        clear_job(world, settings, version, ended=False)
        with pytest.raises(StateConflict):
            erase_tenant(world.db, settings, world.tenant)
        assert read_rows(world, settings, version) == ROWS

    def test_removes_no_folder_outside_that_of_jobs(
        self, world: lw.World, settings: Settings, tmp_path: Path
    ) -> None:
        _, version = clear_upload(world, settings)
        job_id = clear_job(world, settings, version, ended=True)
        outside = tmp_path / "outside"
        outside.mkdir()
        with world.db.transaction() as session:
            session.get_one(Job, job_id).job_dir = str(outside)
        assert erase_tenant(world.db, settings, world.tenant).job_folders == 0
        assert outside.is_dir()


class TestCommands:
    def run(self, settings: Settings, *words: str) -> tuple[int, str]:
        outcome = CliRunner().invoke(app, ["data", *words, "--data-dir", str(settings.data_dir)])
        return outcome.exit_code, outcome.output

    def test_encrypt_rotate_and_erase(self, world: lw.World, settings: Settings) -> None:
        _, version = clear_upload(world, settings)
        assert self.run(settings, "encrypt") == (
            0,
            "Encrypted 1 uploads and 0 files of jobs.\n",
        )
        before = self.run(settings, "status")[1]
        assert before.endswith("present, wraps the keys of 1 hospitals\n")
        assert self.run(settings, "rotate-key")[0] == 0
        told = self.run(settings, "status")[1].splitlines()
        assert sorted(line.split("  ")[1] for line in told) == [
            "present, wraps the keys of 1 hospitals",
            "retired, wraps the keys of 0 hospitals",
        ]
        assert self.run(settings, "rewrap", "--forget")[0] == 0
        after = self.run(settings, "status")[1]
        assert len(after.splitlines()) == 1 and after != before
        assert read_rows(world, settings, version) == ROWS
        assert self.run(settings, "erase-tenant", "tn_none", "--yes")[0] == 2
        assert self.run(settings, "erase-tenant", world.tenant, "--yes") == (
            0,
            "Erased: 1 keys, 1 uploads, folders of 0 jobs.\n",
        )

    def test_a_missing_key_is_told(self, world: lw.World, settings: Settings) -> None:
        clear_upload(world, settings)
        self.run(settings, "encrypt")
        (settings.keys_dir / "data.key").unlink()
        code, told = self.run(settings, "rewrap")
        assert code == 2 and "it is not in the folder" in told
        assert "MISSING" in self.run(settings, "status")[1]

"""Short commands: help, migrate, keys, export, verify."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from service.auth.identities import identity_id
from service.auth.keys import authenticate
from service.bootstrap import bootstrap
from service.cli import app
from service.cli.children import bind_of
from service.cli.verifier import verifier_path
from service.database import Database
from service.membership.invitations import invite
from service.migrate import is_at_head, upgrade
from service.settings import Settings
from service.tenants.models import Principal
from tests.service.ledger import world as lw

ROOT = Path(__file__).resolve().parents[3]
COMMANDS = (
    *("up", "migrate", "demo", "verify", "ledger", "keys", "api", "dispatcher", "worker"),
    "bench",
    "people",
    "policy",
)


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.output + (done.stderr or "")


@pytest.fixture
def hospital(tmp_path: Path) -> Settings:
    """A migrated database with its five people."""
    settings = Settings(data_dir=tmp_path)
    upgrade(settings.resolved_database_url)
    database = Database(settings.resolved_database_url)
    bootstrap(database, settings)
    database.dispose()
    return settings


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The ledger of a finished job, exported by the command."""
    with lw.sqlite_database(tmp_path) as db:
        world = lw.open_world(db)
        lw.run_job(world, run_plan=lw.plan())
    (tmp_path / "ledger.db").rename(tmp_path / "service.db")
    out = tmp_path / "bundle.zip"
    code, text = run("ledger", "export", "--out", str(out), "--data-dir", str(tmp_path))
    assert (code, "rldp verify" in text) == (0, True), text
    return out


class TestHelp:
    def test_the_first_screen_names_every_command_and_where_to_start(self) -> None:
        code, text = run("--help")
        assert code == 0
        assert all(command in text for command in COMMANDS)
        assert "rldp demo" in text and "OpenAI client" in text

    @pytest.mark.parametrize("command", [*COMMANDS[:2], *COMMANDS[4:]])
    def test_every_command_explains_itself(self, command: str) -> None:
        code, text = run(command, "--help")
        assert code == 0 and len(text) > 100

    def test_help_loads_neither_torch_nor_the_service(self) -> None:
        program = (
            "import sys\nfrom service.cli import app\n"
            "print({'torch', 'fastapi', 'celery', 'sqlalchemy'} & set(sys.modules))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "set()"

    def test_the_benchmark_teaches_and_names_what_it_cannot_run(self, tmp_path: Path) -> None:
        code, text = run("bench", "utility", "--help")
        assert code == 0 and "equal privacy" in text and "--suite cpu" in text
        options = ("--out", str(tmp_path), "--data", str(tmp_path))
        wrongs = (("--suite", "cpu"), ("--arms", "reference"), ("--corpus", "diabetes130"))
        for wrong, hint in wrongs:
            code, text = run("bench", "utility", *options, wrong, "nonesuch")
            assert code == 2 and hint in text
        code, text = run("bench", "utility", *options)
        assert code == 2 and "--data" in text

    def test_the_guided_run_lists_its_own_options(self) -> None:
        code, text = run("demo", "--help")
        assert code == 0 and "--epsilon" in text


class TestMigrate:
    def test_it_brings_an_empty_folder_to_this_release(self, tmp_path: Path) -> None:
        folder = tmp_path / "data"
        code, _ = run("migrate", "--data-dir", str(folder))
        database = Database(Settings(data_dir=folder).resolved_database_url)
        assert (code, is_at_head(database)) == (0, True)
        database.dispose()
        assert folder.stat().st_mode & 0o777 == 0o700


class TestKeys:
    def test_a_key_works_for_the_person_it_was_made_for(self, hospital: Settings) -> None:
        done = CliRunner().invoke(
            app, ["keys", "create", "submitter", "--data-dir", str(hospital.data_dir)]
        )
        database = Database(hospital.resolved_database_url)
        owner = authenticate(database, done.stdout.strip().splitlines()[-1])
        database.dispose()
        assert owner is not None and owner.role == "submitter"

    @pytest.mark.parametrize("person", ["steward", "usr_nobody", "emperor"])
    def test_it_must_mean_exactly_one_person(self, hospital: Settings, person: str) -> None:
        code, text = run("keys", "create", person, "--data-dir", str(hospital.data_dir))
        assert code != 0
        assert ("usr_" in text) == (person == "steward"), "the two stewards are listed"


class TestPeople:
    USER = ("--user", "8d0c")

    @pytest.fixture(autouse=True)
    def provider(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RLDP_OIDC_ISSUER", "https://id.example")
        monkeypatch.setenv("RLDP_OIDC_AUDIENCE", "rldp-api")

    def call(self, hospital: Settings, *words: str) -> tuple[int, str]:
        return run("people", *words, "--data-dir", str(hospital.data_dir))

    def test_a_person_is_linked_listed_and_unlinked(self, hospital: Settings) -> None:
        code, text = self.call(hospital, "link", "submitter", *self.USER)
        assert code == 0 and "(submitter)" in text
        assert "submitter links=1 active" in self.call(hospital, "list")[1]
        assert self.call(hospital, "link", "auditor", *self.USER)[0] == 0, "the link moves"
        listed = self.call(hospital, "list")[1]
        assert "auditor links=1" in listed and "submitter links=0" in listed
        identity = identity_id("https://id.example", "8d0c")
        assert self.call(hospital, "unlink", "--identity", identity)[0] == 0
        assert self.call(hospital, "unlink", "--identity", identity)[0] != 0, "it is gone"

    def test_a_blocked_persons_key_opens_nothing_until_they_are_let_in_again(
        self, hospital: Settings
    ) -> None:
        made = CliRunner().invoke(
            app, ["keys", "create", "auditor", "--data-dir", str(hospital.data_dir)]
        )
        key = made.stdout.strip().splitlines()[-1]
        database = Database(hospital.resolved_database_url)
        assert "is blocked" in self.call(hospital, "block", "auditor")[1]
        assert authenticate(database, key) is None
        assert "auditor links=0 blocked" in self.call(hospital, "list")[1]
        assert "is active" in self.call(hospital, "unblock", "auditor")[1]
        assert authenticate(database, key) is not None
        database.dispose()

    def test_who_was_invited_is_listed_so_and_cannot_be_let_in_by_hand(
        self, hospital: Settings
    ) -> None:
        database = Database(hospital.resolved_database_url)
        with database.transaction() as session:
            admin = session.scalars(select(Principal).where(Principal.role == "admin")).one()
            made = invite(
                session, tenant_id=admin.tenant_id, role="steward", invited_by=admin.id
            ).person.id
        database.dispose()
        assert f"{made} {admin.tenant_id} steward links=0 invited" in self.call(hospital, "list")[1]
        code, text = self.call(hospital, "unblock", made)
        assert code != 0 and "never in" in text
        assert self.call(hospital, "block", made)[0] == 0
        assert "links=0 withdrawn" in self.call(hospital, "list")[1]

    @pytest.mark.parametrize(
        "words",
        [
            ("submitter",),
            ("submitter", "--user", "a", "--identity", "b"),
            ("submitter", "--identity", "b"),
            ("nobody", "--user", "a"),
        ],
    )
    def test_it_must_be_clear_who_is_meant(
        self, hospital: Settings, words: tuple[str, ...]
    ) -> None:
        assert self.call(hospital, "link", *words)[0] != 0

    def test_without_a_provider_a_user_means_nobody(
        self, hospital: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RLDP_OIDC_ISSUER", "")
        monkeypatch.setenv("RLDP_OIDC_AUDIENCE", "")
        code, text = self.call(hospital, "link", "submitter", *self.USER)
        assert code != 0 and "RLDP_OIDC_ISSUER" in text


class TestExportAndVerify:
    def test_an_exported_bundle_passes_the_verifier(self, bundle: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "service.cli", "verify", str(bundle)],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode in (0, 3), done.stdout + done.stderr

    def test_its_exit_code_and_options_pass_through(self, bundle: Path, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "service.cli", "verify"]
        missing = subprocess.run(
            [*command, str(tmp_path / "none.zip")], capture_output=True, check=False, cwd=ROOT
        )
        version = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert missing.returncode == 2
        assert version.returncode == 0 and version.stdout.strip()

    def test_a_tampered_bundle_fails(self, bundle: Path) -> None:
        import zipfile

        changed = bundle.with_name("changed.zip")
        with zipfile.ZipFile(bundle) as source, zipfile.ZipFile(changed, "w") as target:
            for name in source.namelist():
                content = source.read(name)
                if name == "entries.jsonl":
                    content = content.replace(b'"steps":10', b'"steps":9', 1)
                target.writestr(name, content)
        done = subprocess.run(
            [sys.executable, "-m", "service.cli", "verify", str(changed)],
            capture_output=True,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == 1

    def test_an_existing_file_is_not_overwritten(self, bundle: Path) -> None:
        before = bundle.read_bytes()
        code, _ = run("ledger", "export", "--out", str(bundle), "--data-dir", str(bundle.parent))
        assert code != 0 and bundle.read_bytes() == before

    def test_the_verifier_is_found_and_not_imported(self) -> None:
        assert verifier_path() == ROOT / "deploy" / "verifier" / "verify_ledger.py"
        # In a fresh interpreter: here another test may have imported it.
        asked = "import sys, service.cli, service.cli.verifier as v; v.verifier_path();"
        asked += "sys.exit(any('verify_ledger' in name for name in sys.modules))"
        assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0


class TestBootstrap:
    def test_it_fills_a_database_once_and_keeps_keys_apart_from_data(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RLDP_KEYS_FOLDER", str(tmp_path / "stewards"))
        data, keys = tmp_path / "data", tmp_path / "keys.json"
        asked = ("bootstrap", "--keys-file", str(keys), "--data-dir", str(data))
        assert run("migrate", "--data-dir", str(data))[0] == 0
        assert run(*asked)[0] == 0
        written = keys.read_bytes()
        assert {path.name for path in (tmp_path / "stewards").iterdir()} == {
            "steward-1.pem",
            "steward-2.pem",
        }
        code, told = run(*asked)
        assert code == 0 and "nothing was changed" in told
        assert keys.read_bytes() == written


class TestBind:
    @pytest.mark.parametrize("bind", ["127.0.0.1:8080", "[::1]:8080", "localhost:1"])
    def test_this_host_is_fine(self, bind: str) -> None:
        assert bind_of(Settings(bind=bind))[1] > 0

    @pytest.mark.parametrize("bind", ["0.0.0.0:8080", "10.0.0.1:80", "example.org:80", "8080"])
    def test_plain_http_beyond_this_host_is_refused(self, bind: str) -> None:
        import typer

        with pytest.raises(typer.BadParameter):
            bind_of(Settings(bind=bind))

    def test_production_binds_where_it_is_told(self) -> None:
        settings = Settings(
            environment="production",
            bind="0.0.0.0:8443",
            database_url="postgresql+psycopg://db/rldp",
            witnesses=Path("witnesses"),
            witness_quorum=1,
        )
        assert bind_of(settings) == ("0.0.0.0", 8443)


def test_no_test_here_reads_the_callers_settings() -> None:
    assert not [name for name in os.environ if name.startswith("RLDP_DATA_DIR")]

"""The production layout of deploy/compose/compose.yaml as plain processes, without containers.

Settings, keys, roles and grants are those of the package: the environment is read from the
Compose file, and only addresses and paths are put in place of the containers'. PostgreSQL and
Redis are servers of our own, so that they can be killed as well.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from service.demo.client import Access, DemoClient, read_keys
from service.demo.server import free_port
from tests.deploy.parts import DEPLOY, Part, compose_parts

QUICK = {"RLDP_LEASE_SECONDS": "6", "RLDP_POLL_SECONDS": "2"}  # so that a test sees a lease end
WITNESS = "example.org/witness-1"
APIS = ("api-1", "api-2")
WORKERS = ("worker-1", "worker-2", "worker-3")
SOON = 240.0  # it only has to come; on a busy machine that takes longer


def wait_until(ready: Callable[[], bool], what: str, seconds: float = SOON) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def server_binaries() -> Path:
    """Where PostgreSQL's server programs lie; skips loudly where there are none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL server programs on this machine")
    return found[-1].parent


def as_postgres() -> list[str]:
    """PostgreSQL refuses to run as root."""
    return ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []


@dataclass
class Layout:
    """All parts by name. Only processes that it started are ever killed."""

    root: Path
    quick: Mapping[str, str] = field(default_factory=lambda: QUICK)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("postgres", "redis", "witness", *APIS):
            self.ports[name] = free_port()
        self.bin = server_binaries()
        self.parts = {part.role: part for part in compose_parts() if part.is_ours}
        self.secrets = self.root / "secrets"

    # --- settings -------------------------------------------------------------------------

    def environment(self, part: Part, **more: str) -> dict[str, str]:
        """The part's environment in Compose, with this machine's paths and ports."""
        places = {
            "/var/lib/rldp": self.root / "data",
            "/srv/models": self.root / "models",
            "/etc/rldp/witnesses": self.root / "witnesses",
            "/run/secrets/database": self.secrets / "database",
        }
        if "/run/keys" in part.mounts:
            places["/run/keys"] = self.secrets / Path(part.mounts["/run/keys"]).name
        elif part.role == "worker":
            places["/run/keys"] = self._keys_of(part)
        hosts = {"postgres:5432": "postgres", "redis:6379": "redis"}
        found = {}
        for name, value in (part.environment | dict(self.quick) | more).items():
            for inside, here in places.items():
                value = value.replace(inside, str(here))
            for inside, server in hosts.items():
                value = value.replace(inside, f"127.0.0.1:{self.ports[server]}")
            found[name] = value
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RLDP_")}
        return kept | {"OMP_NUM_THREADS": "1"} | found

    def _keys_of(self, part: Part) -> Path:
        """A folder of the files that are mounted one by one."""
        folder = self.root / f"keys-{part.role}"
        folder.mkdir(exist_ok=True)
        for inside, source in part.mounts.items():
            if inside.startswith("/run/keys/"):
                link = folder / Path(inside).name
                if not link.exists():
                    link.symlink_to(self.secrets / source.removeprefix("./secrets/"))
        return folder

    def rldp(self, role: str, *words: str, **more: str) -> str:
        """Output of a command of `rldp`, with the settings of a part."""
        done = subprocess.run(
            [sys.executable, "-m", "service.cli", *words],
            env=self.environment(self.parts[role], **more),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    # --- servers --------------------------------------------------------------------------

    def make(self) -> None:
        """Secrets, database with roles, schema and grants, witness."""
        self.make_bare()
        self.rldp("migrate", "migrate")
        self.psql("rldp_owner", DEPLOY / "postgres" / "grants.sql")
        self.make_witness()

    def make_bare(self) -> None:
        """Secrets, and a database with roles and without a schema."""
        for name in ("models", "data"):
            (self.root / name).mkdir()
        (self.root / "witnesses").touch()
        subprocess.run(
            [str(DEPLOY / "make_secrets.sh"), str(self.secrets), str(os.geteuid()), "0"],
            check=True,
            capture_output=True,
        )
        for path in (self.secrets / "database").iterdir():  # the host that libpq looks for
            path.chmod(0o600)
            path.write_text(
                path.read_text().replace("postgres:5432", f"127.0.0.1:{self.ports['postgres']}")
            )
        self._make_database()

    def _make_database(self) -> None:
        cluster, password = self.root / "pg", self.root / "superuser"
        password.write_text((self.secrets / "postgres" / "superuser").read_text())
        for folder in (self.root, *self.root.parents):
            if folder.stat().st_uid == os.geteuid() and as_postgres():
                folder.chmod(folder.stat().st_mode | 0o011)
        password.chmod(0o644)
        cluster.mkdir()
        if as_postgres():
            import shutil

            shutil.chown(cluster, "postgres")
        words = ["-D", str(cluster), "-U", "postgres", "-A", "scram-sha-256", "--no-sync"]
        words += [f"--pwfile={password}", "--data-checksums"]
        subprocess.run([*as_postgres(), str(self.bin / "initdb"), *words], check=True,
                       capture_output=True)  # fmt: skip
        self.start("postgres")
        self.psql("postgres", None, "CREATE DATABASE rldp", database="postgres")
        roles = (DEPLOY / "postgres" / "roles.sql").read_text()
        here = self.root / "roles.sql"
        here.write_text(roles.replace("/run/secrets/postgres", str(self.secrets / "postgres")))
        self.psql("postgres", here)

    def psql(self, role: str, file: Path | None, *commands: str, database: str = "rldp") -> None:
        words = ["--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", "-v", "app=rldp_app"]
        words += ["-v", "reader=rldp_reader", *(["-f", str(file)] if file else [])]
        for command in commands:
            words += ["-c", command]
        done = subprocess.run(
            [str(self.bin / "psql"), *words, self.dsn(role, database)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    def dsn(self, role: str, database: str = "rldp") -> str:
        name = {"postgres": "superuser"}.get(role, role.removeprefix("rldp_"))
        password = (self.secrets / "postgres" / name).read_text().strip()
        return f"postgresql://{role}:{password}@127.0.0.1:{self.ports['postgres']}/{database}"

    def make_witness(self) -> None:
        folder = str(self.root / "witness")
        vkey = self.rldp("witness", "witness", "init", "--dir", folder, "--name", WITNESS)
        address = f"http://127.0.0.1:{self.ports['witness']}"
        (self.root / "witnesses").write_text(f"{vkey} {address}\n")
        log = self.rldp("dispatcher", "ledger", "vkey")
        self.rldp("witness", "witness", "trust", "--dir", folder, log)

    def first_hospital(self) -> Access:
        """People and keys, as the runbook makes them."""
        keys = self.root / "keys.json"
        self.rldp(
            "api", "bootstrap", "--keys-file", str(keys), RLDP_KEYS_FOLDER=str(self.root / "people")
        )
        return Access(url=self.url(APIS[0]), keys=read_keys(keys), signing_dir=self.root / "people")

    # --- processes ------------------------------------------------------------------------

    def url(self, api: str) -> str:
        return f"http://127.0.0.1:{self.ports[api]}"

    def start(self, name: str) -> None:
        """Starts one part and returns once it answers, where it has a port."""
        command, environment = self._command(name)
        with (self.root / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if name in self.ports:
            wait_until(lambda: listens(self.ports[name]), f"{name} listens")
        if name == "postgres":
            ready = [str(self.bin / "pg_isready"), "-q", "-h", "127.0.0.1"]
            ready += ["-p", str(self.ports[name])]
            wait_until(lambda: subprocess.run(ready).returncode == 0, "PostgreSQL is ready")
        if name in APIS:
            wait_until(lambda: self.is_ready(name), f"{name} is ready")

    def is_ready(self, api: str) -> bool:
        try:
            return httpx.get(f"{self.url(api)}/readyz", timeout=3).status_code == 200
        except httpx.TransportError:
            return False

    def _command(self, name: str) -> tuple[list[str], dict[str, str]]:
        if name == "postgres":
            words = ["-D", str(self.root / "pg"), "-p", str(self.ports[name]), "-k", ""]
            words += ["-c", "listen_addresses=127.0.0.1", "-c", "synchronous_commit=on"]
            return [*as_postgres(), str(self.bin / "postgres"), *words], dict(os.environ)
        if name == "redis":
            told = next(p for p in compose_parts() if p.role == "redis").command[1:]
            words = [*told, "--port", str(self.ports[name]), "--dir", str(self.root)]
            return ["redis-server", *words, "--bind", "127.0.0.1"], dict(os.environ)
        if name in WORKERS:
            environment = self.environment(self.parts["worker"])
            return [sys.executable, "-m", "tests.deploy.fake_worker"], environment
        role = name.partition("-")[0]
        words: Sequence[str] = self.parts[role].command
        more = {}
        if name in APIS:
            more = {
                "RLDP_BIND": f"127.0.0.1:{self.ports[name]}",
                "RLDP_METRICS_BIND": f"127.0.0.1:{free_port()}",
            }
        if name == "witness":
            folder, bind = str(self.root / "witness"), f"127.0.0.1:{self.ports[name]}"
            words = [{"/var/lib/witness": folder, "0.0.0.0:8090": bind}.get(w, w) for w in words]
        environment = self.environment(self.parts[role], **more)
        return [sys.executable, "-m", "service.cli", *words], environment

    def kill(self, name: str) -> None:
        """SIGKILL to the process that `start` made; of PostgreSQL, to its postmaster."""
        process = self.processes.pop(name)
        os.kill(self._server_pid(name, process), signal.SIGKILL)
        process.wait(10)

    def _server_pid(self, name: str, process: subprocess.Popen[bytes]) -> int:
        if name == "postgres":
            return int((self.root / "pg" / "postmaster.pid").read_text().split()[0])
        return process.pid

    def stop(self) -> None:
        for name in [n for n in self.processes if n not in ("postgres", "redis")]:
            self._end(name)
        for name in list(self.processes):
            self._end(name)

    def _end(self, name: str) -> None:
        process = self.processes.pop(name)
        if process.poll() is None:
            number = signal.SIGINT if name == "postgres" else signal.SIGTERM
            os.kill(self._server_pid(name, process), number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)

    def client(self, access: Access, api: str) -> DemoClient:
        return DemoClient(Access(url=self.url(api), keys=access.keys,
                                 signing_dir=access.signing_dir))  # fmt: skip

"""Compose, Kubernetes and systemd start what exists, with settings that exist, locked down."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from sqlalchemy import text

from service.cli import app
from service.database import Database
from service.jobs.lifecycle import CLAIMABLE
from service.keyfiles import secret_key
from service.ledger import disclosures
from service.ledger.keys import LOG_KEY_FILE, RECEIPT_KEY_FILE, RETIRED_FILE, load_keys
from service.models import metadata
from service.sealing.master import KEY_FILE as DATA_KEY_FILE
from service.sealing.master import RETIRED_FILE as RETIRED_DATA_FILE
from service.sealing.master import MasterKeys
from service.settings import Settings
from tests.deploy.parts import (
    COMPOSE,
    DEPLOY,
    KUBERNETES,
    Part,
    all_parts,
    compose,
    compose_parts,
    documents,
    kubernetes_parts,
    systemd_parts,
)

ROOT = DEPLOY.parent
OURS = [part for part in all_parts() if part.is_ours]
ROUTES = {"/healthz", "/readyz"}


def by_place(part: Part) -> str:
    return part.place


def test_every_layout_has_every_part() -> None:
    for parts in (compose_parts(), kubernetes_parts(), systemd_parts()):
        roles = {part.role for part in parts}
        assert {"api", "dispatcher", "worker", "witness", "migrate"} <= roles


@pytest.mark.parametrize("part", OURS, ids=by_place)
def test_its_settings_exist_and_are_accepted(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {f"RLDP_{name.upper()}" for name in Settings.model_fields}
    assert set(part.settings) <= known
    if part.role == "witness":  # has a folder of its own, and no setting
        assert not part.settings
        return
    for name, value in part.settings.items():
        is_secret_url = (name, value) == ("RLDP_DATABASE_URL", "(secret)")
        monkeypatch.setenv(name, "postgresql+psycopg://db/rldp" if is_secret_url else value)
    settings = Settings()  # whatever production refuses raises here
    assert settings.environment == "production"
    assert settings.resolved_broker_url.startswith("redis://")


@pytest.mark.parametrize("part", OURS, ids=by_place)
def test_its_command_exists(part: Part) -> None:
    command: Any = typer.main.get_command(app)
    words = list(part.command)
    while words and hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands, f"rldp has no command {' '.join(part.command)}"
        command = command.commands[name]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("part", OURS, ids=by_place)
def test_keys_and_witnesses_are_mounted_where_they_are_needed_and_nowhere_else(part: Part) -> None:
    keys = part.settings.get("RLDP_KEYS_FOLDER")
    opening = {DATA_KEY_FILE, RETIRED_DATA_FILE}
    if part.role == "worker":
        assert keys is not None and mounted_keys(part, keys) == opening, "it signs nothing"
        return
    if part.role not in ("api", "dispatcher"):
        assert keys is None, "no other part may read a key"
        assert not [what for what in part.mounts.values() if "keys" in what]
        return
    assert keys is not None
    signing = {LOG_KEY_FILE, RECEIPT_KEY_FILE, RETIRED_FILE}
    of_api = opening | {disclosures.KEY_FILE, "dashboard.key"}
    of_api = opening | {disclosures.KEY_FILE, "dashboard.key"}
    needed = signing | (of_api if part.role == "api" else set())
    if part.place.startswith("systemd"):
        assert {path.removeprefix("%d/") for path in part.mounts} == needed
    else:
        assert part.mounts[keys].endswith("keys")  # of the folder the script fills
        checkpoints = part.mounts["/var/lib/rldp/checkpoints"]
        assert checkpoints == "checkpoints", "signers share what they remember"
    witnesses = part.settings.get("RLDP_WITNESSES")
    if witnesses and not part.place.startswith("systemd"):
        assert {witnesses, str(Path(witnesses).parent)} & set(part.mounts)


def mounted_keys(part: Part, folder: str) -> set[str]:
    """Names of the key files that a part sees, one by one."""
    if part.place.startswith("kubernetes"):
        volumes = {each["name"]: each for each in part.raw["pod"]["volumes"]}
        assert part.mounts[folder] == "rldp-keys"
        return {item["path"] for item in volumes["keys"]["secret"]["items"]}
    inside = {path: what for path, what in part.mounts.items() if "keys" in what}
    assert all(path.rpartition("/")[2] == what.rpartition("/")[2] for path, what in inside.items())
    assert {path.rpartition("/")[0] for path in inside} == {folder}
    return {path.rpartition("/")[2] for path in inside}


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell script")
def test_the_script_makes_exactly_the_keys_that_production_demands(tmp_path: Path) -> None:
    script = [str(DEPLOY / "make_secrets.sh"), str(tmp_path / "s"), "0", "0"]
    subprocess.run(script, check=True, capture_output=True)
    made = {p: p.read_bytes() for p in (tmp_path / "s").rglob("*") if p.is_file()}
    subprocess.run(script, check=True, capture_output=True)
    assert {p: p.read_bytes() for p in made} == made, "a second run replaces nothing"
    assert {p.stat().st_mode & 0o777 for p in made} == {0o400}
    common: dict[str, Any] = {
        "environment": "production",
        "database_url": "postgresql+psycopg://db/rldp",
        "witnesses": tmp_path / "w",
        "witness_quorum": 1,
    }
    keys = load_keys(Settings(**common, keys_folder=tmp_path / "s" / "keys"))
    assert keys.retired == ()
    assert secret_key(tmp_path / "s/keys" / disclosures.KEY_FILE, 32, make=False)
    masters = MasterKeys(tmp_path / "s" / "keys", make=False)
    assert masters.present() and masters.retired() == []
    assert (tmp_path / "s/keys/dashboard.key").stat().st_size >= 32
    for source in {m for p in compose_parts() for m in p.mounts.values() if "./secrets" in m}:
        assert (tmp_path / "s" / source.removeprefix("./secrets/")).exists(), source


@pytest.mark.parametrize("part", compose_parts(), ids=by_place)
def test_compose_containers_are_locked_down(part: Part) -> None:
    raw = part.raw
    assert raw["read_only"] is True and raw["cap_drop"] == ["ALL"]
    assert raw["security_opt"] == ["no-new-privileges:true"]
    assert not raw["user"].startswith(("0", "root"))
    assert raw["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory"}
    assert raw["healthcheck"].get("disable") or raw["healthcheck"]["test"]
    assert raw["healthcheck"].get("disable", False) == (raw["restart"] == "no")
    for published in raw.get("ports", ()):
        assert published.startswith("127.0.0.1:")


@pytest.mark.parametrize("part", kubernetes_parts(), ids=by_place)
def test_pods_are_locked_down(part: Part) -> None:
    pod, container = part.raw["pod"], part.raw["container"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for kind in ("requests", "limits"):
        assert container["resources"][kind].keys() >= {"cpu", "memory"}
    if pod.get("restartPolicy") != "OnFailure":
        assert "livenessProbe" in container


@pytest.mark.parametrize("part", all_parts(), ids=by_place)
def test_images_have_an_exact_tag(part: Part) -> None:
    if not part.place.startswith("systemd"):
        assert re.fullmatch(r"[a-z0-9./-]+(:v?\d+\.\d+[\w.-]*|@sha256:[0-9a-f]{64})", part.image)


def test_no_secret_stands_in_a_manifest() -> None:
    for _, document in documents():
        assert document["kind"] != "Secret", "Secrets are referred to, never written"
    written = [p for p in DEPLOY.rglob("*") if p.suffix in {".yaml", ".yml", ".service", ".json"}]
    for path in written:
        assert "BEGIN PRIVATE" not in path.read_text(encoding="utf-8"), path
    for part in all_parts():
        for name, value in part.environment.items():
            if "PASSWORD" in name:
                assert name.endswith(("_FILE", "__FILE")), (part.place, name)
            assert not re.search(r"://[^/@:]+:[^@/]+@", value), (part.place, name)


def test_probes_ask_paths_and_ports_that_exist() -> None:
    from service.app import create_app

    asked: list[tuple[str, str]] = []
    for part in kubernetes_parts():
        container = part.raw["container"]
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", ())}
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = container.get(name, {}).get("httpGet")
            if probe:
                assert probe["port"] in ports
                asked.append((part.role, probe["path"]))
        if part.role == "api":
            bound = [part.settings[name] for name in ("RLDP_BIND", "RLDP_METRICS_BIND")]
            assert list(ports.values()) == [int(each.rpartition(":")[2]) for each in bound]
    for part in compose_parts():
        test = part.raw["healthcheck"].get("test", [])
        if part.is_ours and "http" in test:
            asked.append((part.role, "/" + test[-1].split("/", 3)[3]))
    assert {path for role, path in asked if role == "api"} == ROUTES
    routes = {route.path for route in _routes(create_app)}
    assert routes >= ROUTES
    from service.witness import server

    assert 'Route("/healthz"' in Path(server.__file__).read_text(encoding="utf-8")
    assert {path for role, path in asked if role == "witness"} == {"/healthz"}


def _routes(create_app: Any) -> list[Any]:
    from service.health import router

    return list(router.routes)


def test_probes_run_a_script_that_the_image_holds() -> None:
    containerfile = (DEPLOY / "images" / "Containerfile").read_text(encoding="utf-8")
    assert "COPY deploy/images/health.py /opt/health.py" in containerfile
    for part in compose_parts():
        test = part.raw["healthcheck"].get("test", [])
        if part.is_ours and test:
            assert test[1:3] == ["python", "/opt/health.py"], part.place


def test_the_image_without_training_stack_has_the_rest_of_the_requirements() -> None:
    import tomllib

    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.split(r"[<>=\[ ]", line)[0] for line in told["dependencies"]}
    training = {"torch", "opacus", "transformers", "peft", "stable-baselines3", "safetensors"}
    lines = (DEPLOY / "images" / "service.txt").read_text(encoding="utf-8").splitlines()
    listed = {line.partition("[")[0] for line in lines if line and not line.startswith("#")}
    extras = {"psycopg", "pyarrow"}
    extras |= {"opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"}
    assert listed == (names - training) | extras


def test_its_commands_start_without_the_training_stack() -> None:
    blocked = "import sys\nclass Block:\n  def find_spec(self, name, path=None, target=None):\n"
    blocked += "    if name.partition('.')[0] in ('torch', 'opacus', 'transformers', 'peft',"
    blocked += " 'safetensors', 'stable_baselines3', 'gymnasium'): raise ImportError(name)\n"
    blocked += "sys.meta_path.insert(0, Block())\n"
    blocked += "import service.app, service.dispatcher, service.migrate, service.cli.children,"
    blocked += "service.cli.export, service.cli.recover, service.cli.first_start,"
    blocked += "service.ledger.publisher, service.witness.server, service.worker.celery_app\n"
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_copied_grants_are_those_of_the_package() -> None:
    original = (DEPLOY / "postgres" / "grants.sql").read_text(encoding="utf-8")
    copy = KUBERNETES / "base" / "grants.sql"  # Kustomize reads nothing above its folder
    assert copy.read_text(encoding="utf-8") == original
    roles = KUBERNETES / "overlays" / "trial" / "roles.sql"
    assert roles.read_text() == (DEPLOY / "postgres" / "roles.sql").read_text()


def test_grants_withhold_change_from_every_append_only_table() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "migrations").rglob("0*.py")]
    listed = [re.search(r"^APPEND_ONLY = \((.*?)\)", s, re.M | re.S) for s in sources]
    guarded = {name for match in listed if match for name in re.findall(r'"(\w+)"', match[1])}
    grants = (DEPLOY / "postgres" / "grants.sql").read_text(encoding="utf-8")
    match = re.search(r"REVOKE UPDATE, DELETE ON ([\w,\s]+?)\s+FROM", grants)
    assert match is not None
    revoked = {name.strip() for name in match[1].split(",")}
    assert guarded <= revoked <= set(metadata.tables)


def test_the_autoscaler_asks_a_question_that_the_schema_answers() -> None:
    found = [d for _, d in documents() if d["kind"] == "ScaledObject"]
    assert len(found) == 1
    query = found[0]["spec"]["triggers"][0]["metadata"]["query"]
    database = Database("sqlite://")
    metadata.create_all(database.engine)
    with database.engine.connect() as connection:
        assert connection.execute(text(query)).scalar_one() == 0
    database.dispose()
    assert set(re.findall(r"'(\w+)'", query)) == CLAIMABLE
    target = found[0]["spec"]["scaleTargetRef"]["name"]
    deployed = {d["metadata"]["name"] for _, d in documents() if d["kind"] == "Deployment"}
    assert target in deployed


def test_compose_mounts_files_that_exist() -> None:
    made_by_script = ("./secrets", "./models", "./witnesses")
    for part in compose_parts():
        for volume in part.raw.get("volumes", ()):
            if volume["type"] == "bind":
                assert (
                    volume["source"].startswith(made_by_script)
                    or (COMPOSE.parent / volume["source"]).exists()
                ), volume
            else:
                assert volume["source"] in compose()["volumes"]


def test_workers_reach_the_database_and_the_broker_only() -> None:
    networks = compose()["networks"]
    for part in compose_parts():
        if part.role == "worker":
            assert part.raw["networks"] == ["database", "broker"]
    assert networks["database"] == networks["broker"] == {"internal": True}
    outward = [
        d
        for _, d in documents()
        if d["kind"] == "NetworkPolicy"
        and any("to" not in rule for rule in d["spec"].get("egress", ()))
    ]
    assert [d["spec"]["podSelector"]["matchExpressions"][0]["values"] for d in outward] == [
        ["rldp-api", "rldp-dispatcher"]
    ]


def test_kustomizations_name_files_that_exist() -> None:
    for path in KUBERNETES.rglob("kustomization.yaml"):
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name in [*told.get("resources", ()), *told.get("components", ())]:
            assert (path.parent / name).exists(), (path, name)
        for generated in told.get("configMapGenerator", ()):
            for name in generated.get("files", ()):
                assert (path.parent / name).exists(), (path, name)

"""deploy/ against the schemas and linters of its engines, without an engine.

Kubernetes' own schemas come with kubernetes-validate, the Compose specification with
check-jsonschema. What must be on the machine (kubectl, systemd) is used where it is; what it
checks in addition is said in the reason of the skip.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.parts import COMPOSE, DEPLOY, KUBERNETES, SYSTEMD, documents, unit

VERSION = "1.33"
OPERATORS = {"ScaledObject", "TriggerAuthentication", "ServiceMonitor"}  # custom resources
EXPOSURE_MAX = 2.0  # of 10, by systemd's own measure
DOCUMENTS = [
    pytest.param(d, id=f"{p.relative_to(KUBERNETES)}:{d['kind']}/{d['metadata']['name']}")
    for p, d in documents()
]


def check(document: dict[str, Any]) -> None:
    if document["kind"] in OPERATORS:
        assert document["apiVersion"].partition("/")[0] in {"keda.sh", "monitoring.coreos.com"}
        return
    kubernetes_validate.validate(document, VERSION, strict=True)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_kubernetes_objects_follow_the_schema(document: dict[str, Any]) -> None:
    check(document)


def test_the_schema_refuses_what_is_wrong() -> None:
    wrong = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "a"},
        "spec": {"prots": []},
    }
    with pytest.raises(kubernetes_validate.ValidationError):
        check(wrong)


@pytest.mark.skipif(
    shutil.which("kubectl") is None,
    reason="no kubectl here to render overlays; their files are validated one by one all the same",
)
@pytest.mark.parametrize("overlay", ["hospital", "trial", "witness"])
def test_overlays_render_to_valid_objects(overlay: str) -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES / "overlays" / overlay)],
        capture_output=True,
        text=True,
        check=True,
    )
    rendered = list(yaml.safe_load_all(done.stdout))
    for document in rendered:
        check(document)
    kinds = {document["kind"] for document in rendered}
    assert "NetworkPolicy" in kinds
    if overlay == "hospital":
        assert {"ScaledObject", "Ingress", "ServiceMonitor", "PodDisruptionBudget"} <= kinds
        policy = next(d for d in rendered if d["metadata"]["name"] == "to-database")
        assert policy["spec"]["egress"][0]["to"] == [{"ipBlock": {"cidr": "192.0.2.10/32"}}]
    names = [(d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]) for d in rendered]
    assert len(names) == len(set(names))


def test_compose_follows_the_specification(tmp_path: Path) -> None:
    def validate(path: Path) -> subprocess.CompletedProcess[str]:
        words = ["-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
        return subprocess.run([sys.executable, *words], capture_output=True, text=True)

    done = validate(COMPOSE)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(COMPOSE.read_text().replace("read_only: true\n", "raed_only: true\n", 1))
    assert validate(wrong).returncode == 1


def test_the_containerfile_has_no_finding() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    command = str(linter) if linter.exists() else shutil.which("hadolint")
    assert command, "hadolint is a development requirement: make install"
    done = subprocess.run(
        [
            command,
            "--no-color",
            "--failure-threshold",
            "style",
            str(DEPLOY / "images/Containerfile"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="no systemd-analyze here; the units' hardening is checked as text all the same",
)
@pytest.mark.parametrize("path", sorted(SYSTEMD.glob("*.service")), ids=lambda p: p.name)
def test_systemd_accepts_the_unit_and_calls_it_locked(path: Path, tmp_path: Path) -> None:
    here = tmp_path / path.name
    here.write_text(path.read_text().replace("/opt/rldp/bin/rldp", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(here)], capture_output=True)
    told = [line for line in done.stderr.decode().splitlines() if path.stem.rstrip("@") in line]
    assert (done.returncode, told) == (0, [])
    words = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(here)]
    told = subprocess.run(words, capture_output=True, text=True).stdout.strip().splitlines()
    overall = next(line for line in reversed(told) if "Overall exposure" in line)
    assert float(overall.split(":")[-1].split()[0]) <= EXPOSURE_MAX


@pytest.mark.parametrize("path", sorted(SYSTEMD.glob("*.service")), ids=lambda p: p.name)
def test_units_are_locked_down(path: Path) -> None:
    told = unit(path)
    for name in ("NoNewPrivileges", "ProtectHome", "PrivateTmp", "RestrictSUIDSGID"):
        assert told[name] == ["yes"]
    assert told["ProtectSystem"] == ["strict"]
    assert told["CapabilityBoundingSet"] == [""]
    assert told["User"][0] not in ("root", "0")
    assert "MemoryMax" in told and "TasksMax" in told

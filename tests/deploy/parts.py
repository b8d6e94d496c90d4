"""Every process that deploy/ starts, from Compose, Kubernetes and systemd, in one form."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
COMPOSE = DEPLOY / "compose" / "compose.yaml"
KUBERNETES = DEPLOY / "kubernetes"
SYSTEMD = DEPLOY / "systemd"
WORKLOADS = {"Deployment", "StatefulSet", "Job"}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One container or unit. `command` is what follows the image's entry point `rldp`."""

    place: str
    image: str
    command: tuple[str, ...]
    environment: dict[str, str]  # a value from a Secret is "(secret)"
    mounts: dict[str, str] = field(default_factory=dict)  # path inside: what is there
    raw: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def is_ours(self) -> bool:
        return self.image.startswith("rldp/")

    @property
    def role(self) -> str:
        """`api`, `dispatcher`, `worker`, `witness`, `migrate`, or the image of others."""
        return self.command[0] if self.is_ours else self.image.partition(":")[0]

    @property
    def settings(self) -> dict[str, str]:
        return {k: v for k, v in self.environment.items() if k.startswith("RLDP_")}


@cache
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return loaded


@cache
def compose_parts() -> list[Part]:
    return [
        Part(
            place=f"compose:{name}",
            image=service["image"],
            command=tuple(service.get("command", ())),
            environment={k: str(v) for k, v in service.get("environment", {}).items()},
            mounts={v["target"]: v["source"] for v in service.get("volumes", ())},
            raw=service,
        )
        for name, service in compose()["services"].items()
    ]


@cache
def documents() -> list[tuple[Path, dict[str, Any]]]:
    """Every Kubernetes object as written, before Kustomize; not its own files."""
    return [
        (path, document)
        for path in sorted(KUBERNETES.rglob("*.yaml"))
        if path.name != "kustomization.yaml"
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    ]


@cache
def kubernetes_parts() -> list[Part]:
    return [
        _container(path, pod, container)
        for path, document in documents()
        if document["kind"] in WORKLOADS
        for pod in [document["spec"]["template"]["spec"]]
        for container in [*pod.get("initContainers", ()), *pod["containers"]]
    ]


@cache
def config_map() -> dict[str, str]:
    """The base's settings, as the generated ConfigMap holds them."""
    base = yaml.safe_load((KUBERNETES / "base" / "kustomization.yaml").read_text(encoding="utf-8"))
    generated = {each["name"]: each for each in base["configMapGenerator"]}
    return dict(line.split("=", 1) for line in generated["rldp-settings"]["literals"])


def _container(path: Path, pod: dict[str, Any], container: dict[str, Any]) -> Part:
    environment = dict(config_map()) if container.get("envFrom") else {}
    for variable in container.get("env", ()):
        environment[variable["name"]] = str(variable.get("value", "(secret)"))
    volumes = {volume["name"]: volume for volume in pod.get("volumes", ())}
    mounts = {}
    for mount in container["volumeMounts"]:
        volume = volumes.get(mount["name"], {})
        named = volume.get("secret", {}).get("secretName") or volume.get("configMap", {}).get(
            "name"
        )
        mounts[mount["mountPath"]] = named or mount["name"]
    return Part(
        place=f"kubernetes:{path.stem}/{container['name']}",
        image=container["image"],
        command=tuple(container.get("args", ())),
        environment=environment,
        mounts=mounts,
        raw={"pod": pod, "container": container},
    )


def unit(path: Path) -> dict[str, list[str]]:
    """Directives of a unit, each with all its values, instances shown as `1`."""
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"([A-Za-z]+)=(.*)", line)
        if match:
            found.setdefault(match[1], []).append(match[2].replace("%i", "1"))
    return found


def example_settings() -> dict[str, str]:
    text = (SYSTEMD / "rldp.env.example").read_text(encoding="utf-8")
    return dict(re.findall(r"^(RLDP_[A-Z_]+)=(.*)$", text, flags=re.MULTILINE))


@cache
def systemd_parts() -> list[Part]:
    parts = []
    for path in sorted(SYSTEMD.glob("*.service")):
        told = unit(path)
        environment = dict(pair.split("=", 1) for pair in told.get("Environment", ()))
        files = told.get("EnvironmentFile", [])
        if "/etc/rldp/rldp.env" in files:
            environment = example_settings() | environment
        if any("database" in name for name in files):
            environment["RLDP_DATABASE_URL"] = "(secret)"
        words = shlex.split(told["ExecStart"][0])
        assert words[0] == "/opt/rldp/bin/rldp"
        credentials = [pair.split(":", 1) for pair in told.get("LoadCredential", ())]
        parts.append(
            Part(
                place=f"systemd:{path.name}",
                image="rldp/unit",
                command=tuple(words[1:]),
                environment=environment,
                mounts={f"%d/{name}": source for name, source in credentials},
                raw=told,
            )
        )
    return parts


def all_parts() -> list[Part]:
    return [*compose_parts(), *kubernetes_parts(), *systemd_parts()]

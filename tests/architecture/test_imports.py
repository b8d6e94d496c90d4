"""The arrow service -> controller -> dp_core and what each layer may never know."""

from __future__ import annotations

import pytest

from tests.architecture.imports import PACKAGES, Module, chain, modules, ours, reachable

LAYERS = {"dp_core": 0, "controller": 1, "service": 2}
RL = ("stable_baselines3", "gymnasium")
WEB = ("fastapi", "starlette", "sqlalchemy", "celery", "kombu", "redis", "alembic")
FORBIDDEN = {
    "dp_core": (*WEB, *RL),
    "controller": WEB,
    "service": RL,
}
TORCH = ("torch", "opacus", "transformers", "peft", "stable_baselines3", "gymnasium")
TORCH_FREE_ENTRIES = (
    "service.app",
    "service.dispatcher",
    "service.worker.celery_app",
    "service.worker.tasks",
    "service.worker.supervisor",
    "service.cli",
    "service.demo.run",
    "service.demo.models",
)
# What the service may use of dp_core, apart from the trainer process (service.worker.runner).
TORCH_FREE_CORE = {
    f"dp_core.{name}"
    for name in [
        "errors",
        "events",
        "accounting",
        "gaussian_pld",
        "planner",
        "calibration",
        "compute",
        "noise_schedule",
        "plan_report",
        "plan",
        "ports",
        "telemetry",
        "certificate",
        "memory",
        "model_files",
        "submission",
    ]
}
EDGES = ("app", "cli", "dashboard", "demo", "dispatcher", "worker")
# Inside service: what a room must never know. Rooms above may know those below.
ROOMS_ABOVE = {
    "settings": (*EDGES, "jobs", "artifacts", "datasets", "ledger", "auth", "database", "tenants"),
    "database": (*EDGES, "jobs", "artifacts", "datasets", "ledger", "auth", "tenants"),
    "sealing": (
        *EDGES,
        "jobs",
        "artifacts",
        "datasets",
        "ledger",
        "auth",
        "populations",
        "webhooks",
    ),
    "membership": (*EDGES, "jobs", "artifacts", "datasets", "populations", "webhooks"),
    "tenants": (*EDGES, "jobs", "artifacts", "datasets", "ledger", "auth"),
    "auth": (*EDGES, "jobs", "artifacts", "datasets", "ledger", "populations", "webhooks"),
    "webhooks": (*EDGES, "jobs", "artifacts", "datasets", "ledger", "populations"),
    "ledger": (*EDGES, "jobs", "artifacts", "datasets"),
    "populations": (*EDGES, "jobs", "artifacts", "datasets"),
    "certificates": (*EDGES, "jobs", "artifacts", "datasets"),
    "datasets": (*EDGES, "jobs", "artifacts"),
    "artifacts": (*EDGES, "jobs"),
    "jobs": (*EDGES, "operations"),
    "fleet": (*EDGES, "operations", "jobs", "artifacts", "datasets", "ledger", "auth"),
    "operations": EDGES,
    "worker": ("app", "cli", "dashboard", "demo", "operations"),
    "demo": ("app", "dashboard", "database", "jobs", "ledger", "auth", "tenants", "worker"),
}


def _root(name: str) -> str:
    return name.split(".")[0]


def _all(package: str) -> list[Module]:
    return [module for module in modules().values() if _root(module.name) == package]


def test_every_package_is_seen() -> None:
    for package in PACKAGES:
        assert len(_all(package)) > 2, package


@pytest.mark.parametrize("package", PACKAGES)
def test_knowledge_flows_service_to_controller_to_dp_core(package: str) -> None:
    broken = [
        f"{module.name} imports {name}"
        for module in _all(package)
        for name in ours(module, lazy=True)
        if LAYERS[_root(name)] > LAYERS[package]
    ]
    assert not broken


@pytest.mark.parametrize("package", PACKAGES)
def test_a_layer_never_imports_what_belongs_to_another(package: str) -> None:
    broken = [
        f"{module.name} imports {name}"
        for module in _all(package)
        for name in module.imports | module.lazy_imports
        if _root(name) in FORBIDDEN[package]
    ]
    assert not broken


@pytest.mark.parametrize("entry", TORCH_FREE_ENTRIES)
def test_no_torch_is_reachable_from(entry: str) -> None:
    assert entry in modules(), f"{entry} does not exist"
    seen = reachable(entry)
    assert not [chain(seen, name) for name in seen if _root(name) in TORCH]


def test_only_the_trainer_process_loads_the_training_loop() -> None:
    """Lazy imports count too: a function in the API must not pull torch in either."""
    # `rldp audit` is a process of its own, started by a person; no service reaches it
    trainer = set(reachable("service.worker.runner")) | {
        "service.cli.audit",
        "service.cli.audit_controls",
        "service.cli.audit_plots",
    }
    # the playground speaks in a child of the API, which the API never imports
    trainer |= {"service.chat.process"}
    others = [m for m in _all("service") if m.name not in trainer or m.name in reachable_api()]
    broken = [
        f"{module.name} imports {name}"
        for module in others
        for name in ours(module, lazy=True)
        if _root(name) == "dp_core" and name not in TORCH_FREE_CORE | {"dp_core"}
    ]
    assert not broken


def reachable_api() -> set[str]:
    return {name for entry in TORCH_FREE_ENTRIES if entry in modules() for name in reachable(entry)}


@pytest.mark.parametrize("room", sorted(ROOMS_ABOVE))
def test_a_room_does_not_know_the_rooms_above_it(room: str) -> None:
    """The demo is a client: it knows the service through HTTP, hence almost no room of it."""
    above = tuple(f"service.{name}" for name in ROOMS_ABOVE[room])
    inside = [m for m in _all("service") if f"{m.name}.".startswith(f"service.{room}.")]
    assert inside
    broken = [
        f"{module.name} imports {name}"
        for module in inside
        for name in ours(module, lazy=True)
        if f"{name}.".startswith(tuple(f"{room_above}." for room_above in above))
    ]
    assert not broken


def test_no_import_cycle() -> None:
    """Module-level imports form no cycle; a parent package alone does not count as one."""
    graph = {
        m.name: {n for n in m.imports if n in modules() and n != m.name} for m in modules().values()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for imported in sorted(graph[name]):
                visit(imported, (*path, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())

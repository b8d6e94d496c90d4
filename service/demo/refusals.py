"""Shows what the service refuses, with the documented error, and that no balance moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from service.demo.client import ApiProblem, DemoClient, DemoError
from service.demo.screens import Screen


def balances(client: DemoClient, population: str) -> dict[str, tuple[str, str, str]]:
    """(held, spent, free) of each block, as the ledger states them."""
    budget = client.call("steward_1", "GET", f"/budgets/{population}")
    return {
        block["block"]: (block["held_pico"], block["spent_pico"], block["free_pico"])
        for block in budget["blocks"]
    }


def show_refusals(
    client: DemoClient,
    screen: Screen,
    *,
    population: str,
    dataset: str,
    request: Mapping[str, Any],
    work_dir: Path,
) -> None:
    """A malformed file, an unknown field and a budget that does not fit, before the job."""
    before = balances(client, population)
    _malformed_file(client, screen, dataset, work_dir)
    unknown = dict(request) | {"privcy": {"target_epsilon": "1"}}
    _refused(screen, "an unknown field", "unknown_field", lambda: create_job(client, unknown))
    privacy = dict(request["privacy"])
    larger = dict(request) | {
        "suffix": "too-large",
        "privacy": privacy | {"target_epsilon": str(2 * float(privacy["target_epsilon"]))},
    }
    _refused(
        screen,
        "a budget that does not fit",
        "privacy_budget_exceeded",
        lambda: create_job(client, larger),
    )
    _unchanged(client, screen, population, before)


def show_second_job_refused(
    client: DemoClient, screen: Screen, *, population: str, request: Mapping[str, Any]
) -> None:
    """The same again under another name: the population has too little left."""
    before = balances(client, population)
    second = dict(request) | {"suffix": "second", "allow_duplicate": True}
    _refused(
        screen,
        "a second job beyond the budget",
        "privacy_budget_exceeded",
        lambda: create_job(client, second),
    )
    _unchanged(client, screen, population, before)


def create_job(client: DemoClient, request: Mapping[str, Any]) -> dict[str, Any]:
    job: dict[str, Any] = client.call("submitter", "POST", "/fine_tuning/jobs", json=dict(request))
    return job


def _malformed_file(client: DemoClient, screen: Screen, dataset: str, work_dir: Path) -> None:
    path = work_dir / "malformed.jsonl"
    path.write_text(
        '{"patient_id": "p1", "text": "fine"}\nnot json\n{"text": "nobody"}\n', encoding="utf-8"
    )
    file = client.upload(path, dataset=dataset)
    if file["status"] != "error":
        raise DemoError("A malformed file was accepted. This must not happen; please report it.")
    report = client.call("submitter", "GET", f"/files/{file['id']}/validation")
    faults = "; ".join(f"line {row['line']} {row['code']}" for row in report["data"])
    screen.note(f"a malformed file: status error, {faults}")
    client.call("submitter", "DELETE", f"/files/{file['id']}")


def _refused(screen: Screen, what: str, code: str, attempt: Callable[[], object]) -> None:
    try:
        attempt()
    except ApiProblem as problem:
        if problem.code != code:
            raise
        screen.note(f"{what}: {problem.status} {problem.code}. {problem.detail}")
        return
    raise DemoError(f"The service accepted {what}. This must not happen; please report it.")


def _unchanged(
    client: DemoClient, screen: Screen, population: str, before: Mapping[str, Any]
) -> None:
    spent = {block: amounts[1] for block, amounts in balances(client, population).items()}
    free = {block: amounts[2] for block, amounts in balances(client, population).items()}
    if free != {block: amounts[2] for block, amounts in before.items()}:
        raise DemoError(f"A refusal moved a balance of {population}. Please report it.")
    total = sum(int(amount) for amount in spent.values())
    screen.note(f"free balances unchanged by these refusals; {total} pico spent so far")

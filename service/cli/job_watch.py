"""`rldp watch`: follows a job by its stream until it ends, as a bar or as JSON lines."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import typer
from rich.console import Console

from service.cli.ledger_client import LedgerClient
from service.demo.screens import HeldOutLoss, JobBar
from service.jobs.lifecycle import TERMINAL, WITH_ADAPTER, State

RETRY_SECONDS = 3.0
SILENT_SECONDS_MAX = 60.0  # signs of life come every 15 s
TRIES = 20  # a minute of a service that is being restarted
LOSS = "validation_loss_noised"
NOT_ENDED = frozenset(state.value for state in State if state not in TERMINAL)
GOOD = frozenset(state.value for state in WITH_ADAPTER)
Message = tuple[str, dict[str, Any]]


def watch_job(client: LedgerClient, job_id: str, *, as_json: bool) -> int:
    """Shows the job until it ends or is paused; 0 if it has an adapter then, 1 otherwise."""
    job: dict[str, Any] = client.get(f"/fine_tuning/jobs/{job_id}").json()
    if as_json:
        for kind, data in messages(client, job_id):
            typer.echo(json.dumps({"event": kind, "data": data}, ensure_ascii=False))
            job = data if kind == "state" else job
            if job["state"] == State.PAUSED:
                break
        return 0 if job["state"] in GOOD else 1
    console = Console(stderr=True)
    job = _show(client, job, console)
    ended = job["state"] not in NOT_ENDED
    console.print(f"{job['id']} {'ended as' if ended else 'is'} {job['state']}.", highlight=False)
    if job["status_message"]:
        console.print(job["status_message"], highlight=False)
    console.print(_what_next(job), style="dim", highlight=False)
    return 0 if job["state"] in GOOD else 1


def _show(client: LedgerClient, job: dict[str, Any], console: Console) -> dict[str, Any]:
    path, losses = f"/fine_tuning/jobs/{job['id']}", list[HeldOutLoss]()
    bar = JobBar(console, job["progress"]["steps_max"])
    with bar.live:
        for kind, data in messages(client, job["id"]):
            if kind == "metric":
                losses = _losses(client, path) if data["name"] == LOSS else losses
            else:  # what it has spent so far stands in the job alone
                job = data if kind == "state" else client.get(path).json()
            bar.show(job, losses)
            if job["state"] == State.PAUSED:
                break
    return job


def _losses(client: LedgerClient, path: str) -> list[HeldOutLoss]:
    """Released held-out losses with their standard errors, in order of steps."""
    events = client.get(f"{path}/events", limit=100).json()["data"]
    found = {int(e["data"]["step"]): e["data"] for e in events if LOSS in e["data"]}
    return [
        HeldOutLoss(step=step, value=float(data[LOSS]), std=float(data["noise_std"]))
        for step, data in sorted(found.items())
    ]


def _what_next(job: dict[str, Any]) -> str:
    name = job["id"]
    if job["state"] in GOOD:
        return (
            "Next: two stewards release the adapter, on the dashboard under Approvals; then "
            f"GET /v1/fine_tuning/jobs/{name}/artifacts holds it."
        )
    if job["state"] == State.PAUSED:
        return f"Next: rldp jobs resume {name}"
    return f"Next: rldp jobs show {name}; what was charged stays charged."


def messages(client: LedgerClient, job_id: str) -> Iterator[Message]:
    """(kind, data) of the job's stream, over reconnections, until the job has ended.

    Raises:
        typer.Exit: the service refused, or did not answer for a minute.
    """
    cursor, failures = "", 0
    while True:
        try:
            for kind, data, name in _connection(client, job_id, cursor):
                cursor, failures = name or cursor, 0
                if kind == "over":
                    return
                yield kind, data
                if kind == "state" and data["state"] not in NOT_ENDED:
                    return
        except httpx.TransportError as error:
            failures += 1
            if failures == TRIES:
                typer.echo(
                    f"The service does not answer ({type(error).__name__}). The job goes on "
                    f"without us; watch it again with: rldp watch {job_id}",
                    err=True,
                )
                raise typer.Exit(1) from None
            time.sleep(RETRY_SECONDS)


def _connection(
    client: LedgerClient, job_id: str, cursor: str
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(kind, data, cursor) of one connection; the kind `over` if all was told before."""
    path, sent = f"/fine_tuning/jobs/{job_id}/stream", {"Last-Event-ID": cursor} if cursor else {}
    with client.stream(path, headers=sent, silent_seconds=SILENT_SECONDS_MAX) as answer:
        if answer.status_code == 204:
            yield "over", {}, ""
            return
        fields: dict[str, str] = {}
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name:
                fields[name] = value
                continue
            if not line and "data" in fields:
                yield fields["event"], json.loads(fields["data"]), fields.get("id", "")
            if not line:
                fields = {}

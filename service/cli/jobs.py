"""`rldp submit`, `watch` and `jobs`: over the API and with your own key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.remote import DEFAULT_URL, KeyFile, Url

app = typer.Typer(no_args_is_help=True, help="See jobs, and cancel, pause or resume them.")
JobId = Annotated[str, typer.Argument(help="Its id, ftjob-….")]
ROUTE = "/fine_tuning/jobs"


@app.command("list")
def list_jobs(url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """Your jobs, newest first, one JSON line each."""
    from service.cli.ledger_client import LedgerClient

    for row in LedgerClient(url, key_file).rows(ROUTE):
        typer.echo(json.dumps(row, ensure_ascii=False))


@app.command("show")
def show_job(job: JobId, url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """One job: state and reason, progress, what it reserved and spent."""
    from service.cli.ledger_client import LedgerClient, show

    show(LedgerClient(url, key_file).get(f"{ROUTE}/{job}"))


@app.command("cancel")
def cancel(job: JobId, url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """End a job. Windows never started go back to the population."""
    _steer(job, "cancel", url, key_file)


@app.command("pause")
def pause(job: JobId, url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """Stop a running job at its window's end, or hold a queued one.

    Nothing paid is lost and the escrow stays held, for 7 days; then the job is cancelled.
    """
    _steer(job, "pause", url, key_file)


@app.command("resume")
def resume(job: JobId, url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """Queue a paused job. It goes on from its last checkpoint, with fresh noise."""
    _steer(job, "resume", url, key_file)


def _steer(job: str, verb: str, url: str, key_file: Path | None) -> None:
    from service.cli.ledger_client import LedgerClient

    told = LedgerClient(url, key_file).post(f"{ROUTE}/{job}/{verb}", {}).json()
    typer.echo(f"{told['id']} is {told['state']}. {told['status_message'] or ''}".rstrip())


def submit(
    data: Annotated[
        str, typer.Argument(help="Records (JSON lines, CSV, Parquet), or an uploaded file-….")
    ],
    epsilon: Annotated[str, typer.Option(help="The job's ε: what one patient can change.")],
    model: Annotated[str | None, typer.Option(help="Base model. Default: the only one.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="ds_…, whose budget it is. Default: the only one.")
    ] = None,
    delta: Annotated[str, typer.Option(help="At most the population's.")] = "auto",
    steps: Annotated[int | None, typer.Option(min=1, help="Default: chosen for you.")] = None,
    minutes: Annotated[str | None, typer.Option(help="Choose the best plan within these.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Patients expected a step.")] = None,
    tokens_per_row: Annotated[
        int | None, typer.Option(min=16, help="Default: 256, or the model's.")
    ] = None,
    interval: Annotated[int, typer.Option(min=1, help="Steps of a control window.")] = 25,
    controller: Annotated[str, typer.Option(help="auto, rldp, reference, …")] = "auto",
    rank: Annotated[int, typer.Option(min=1, help="Of the LoRA adapters.")] = 16,
    suffix: Annotated[str | None, typer.Option(help="Becomes part of the adapter's name.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything but noise.")] = None,
    priority: Annotated[str, typer.Option(help="low, normal or high.")] = "normal",
    price: Annotated[
        bool, typer.Option("--price", help="Only price it; reserves nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Submit without asking.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Then watch it until it ends.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="The answer as JSON, for scripts.")
    ] = False,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
) -> None:
    """Upload records, see the price in privacy, and submit a job.

    The price costs nothing and equals what submitting reserves. What is never started goes back.

        rldp submit notes.jsonl --epsilon 3 --price
        rldp submit notes.jsonl --epsilon 3 --steps 200 --watch
    """
    from service.cli.job_submit import Order
    from service.cli.job_submit import submit as send
    from service.cli.job_watch import watch_job
    from service.cli.ledger_client import LedgerClient

    body = _body(
        {
            "target_epsilon": epsilon,
            "delta": delta,
            "steps_max": steps,
            "minutes_max": minutes,
            "tokens_per_row": tokens_per_row,
        },
        {"controller": {"type": controller, "interval_steps": interval}, "adapter": {"r": rank}},
        {"priority": priority, "suffix": suffix, "seed": seed},
        batch_size,
    )
    client = LedgerClient(url, key_file)
    given: dict[str, Any] = {"data": data, "model": model, "dataset": dataset, "body": body}
    job = send(client, Order(**given, only_price=price, is_agreed=yes, as_json=as_json))
    if watch and job is not None:
        raise typer.Exit(watch_job(client, job["id"], as_json=as_json))


def _body(
    privacy: dict[str, Any], objects: dict[str, Any], fields: dict[str, Any], batch: int | None
) -> dict[str, Any]:
    """The request's body; what was not said is left to the service."""
    body = objects | {name: value for name, value in fields.items() if value is not None}
    body["privacy"] = {name: value for name, value in privacy.items() if value is not None}
    if batch is not None:
        sizes = {"hyperparameters": {"batch_size": batch}}
        body["method"] = {"type": "supervised", "supervised": sizes}
    return body


def watch(
    job: JobId,
    as_json: Annotated[
        bool, typer.Option("--json", help="Each change as one JSON line, for scripts.")
    ] = False,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
) -> None:
    """Watch a job until it ends: steps, budget charged, held-out loss.

    Exits with 0 if the job has an adapter then, with 1 otherwise. Ctrl-C stops watching, not the
    job.
    """
    from service.cli.job_watch import watch_job
    from service.cli.ledger_client import LedgerClient

    raise typer.Exit(watch_job(LedgerClient(url, key_file), job, as_json=as_json))

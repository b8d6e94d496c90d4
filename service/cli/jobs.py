"""`rldp jobs`: look at jobs and steer them, over the API and with your own key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="See jobs, and cancel, pause or resume them.")
Url = Annotated[str, typer.Option(envvar="RLDP_URL", help="The running service, without /v1.")]
KeyFile = Annotated[
    Path | None, typer.Option(help="File with your API key. Default: the variable RLDP_API_KEY.")
]
JobId = Annotated[str, typer.Argument(help="Its id, ftjob-….")]
DEFAULT_URL = "http://127.0.0.1:8080"
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

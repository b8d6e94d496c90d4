"""`rldp submit`: upload, price, ask, submit. Nothing is spent before the answer yes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table

from service.cli.ledger_client import LedgerClient

FAULTS_SHOWN = 20
ROUTE = "/fine_tuning/jobs"
REMEDIES = {
    "fewer_steps": "fewer steps (--steps)",
    "smaller_epsilon": "a smaller ε (--epsilon)",
    "larger_epsilon": "a larger ε (--epsilon)",
    "smaller_batch": "a smaller batch (--batch-size)",
    "smaller_model": "a smaller model (--model)",
    "shorter_rows": "shorter rows (--tokens-per-row)",
    "smaller_adapter": "a smaller adapter (--rank)",
    "ask_grant": "a grant: your stewards can propose one",
}


@dataclass(frozen=True, kw_only=True)
class Order:
    """What was asked for on the command line. None leaves the choice to the service."""

    data: str
    model: str | None
    dataset: str | None
    body: Mapping[str, Any]
    only_price: bool
    is_agreed: bool
    as_json: bool


def submit(client: LedgerClient, order: Order) -> dict[str, Any] | None:
    """The job; None if it was not submitted because only its price was asked for.

    Raises:
        typer.Exit: refused by the service, the rows have faults, it does not fit, or the answer
            was no. A file that was uploaded stays, and is named.
    """
    console = Console(stderr=True)
    model = order.model or _only(client, "/models", "model", _is_base)
    file = order.data if _is_id(order.data) else _upload(client, order, console)
    body = {**order.body, "model": model, "training_file": file}
    price = client.post(f"{ROUTE}/estimate", body).json()
    if order.only_price and order.as_json:
        typer.echo(json.dumps(price, ensure_ascii=False))
    _show_price(price, console)
    if not price["feasible"]:
        console.print(f"The file stays: {file}", style="dim", highlight=False)
        raise typer.Exit(1)
    if order.only_price:
        return None
    if not order.is_agreed:
        _ask(file)
    # One key for all tries: a lost answer and a repeat end in one job and one reservation.
    job: dict[str, Any] = client.post(ROUTE, body, idempotency_key=str(uuid4())).json()
    if order.as_json:
        typer.echo(json.dumps(job, ensure_ascii=False))
    else:
        typer.echo(job["id"])
    console.print(f"{job['state']}: {job['status_message']}", style="dim", highlight=False)
    return job


def _is_id(data: str) -> bool:
    return data.startswith("file-") and not Path(data).exists()


def _is_base(model: Mapping[str, Any]) -> bool:
    return not str(model["id"]).startswith("ft:")


def _only(client: LedgerClient, path: str, option: str, fits: Any = None) -> str:
    """The id of the one there is; with several, which to choose from."""
    found = [row["id"] for row in client.get(path).json()["data"] if fits is None or fits(row)]
    if len(found) == 1:
        return str(found[0])
    listed = "\n  ".join(found) or "(none: a steward makes one)"
    raise _refused(f"Which {option}? Give --{option}, one of:\n  {listed}")


def _refused(words: str) -> typer.Exit:
    typer.echo(words, err=True)
    return typer.Exit(1)


def _ask(file: str) -> None:
    if not sys.stdin.isatty():
        raise _refused(f"Nobody is there to agree. Say --yes, with {file} in place of the records.")
    if not typer.confirm("Reserve this and submit?", default=False, err=True):
        raise _refused(f"Not submitted; nothing was reserved. The file stays: {file}")


def _upload(client: LedgerClient, order: Order, console: Console) -> str:
    path = Path(order.data)
    if not path.is_file():
        raise _refused(f"{path} is neither a file here nor the id of an uploaded one (file-…).")
    dataset = order.dataset or _only(client, "/datasets", "dataset")
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), DownloadColumn())
    with (
        Progress(*columns, console=console, transient=True) as bar,
        bar.open(path, "rb", description=f"Uploading {path.name}") as rows,
    ):
        file = client.upload(rows, path.name, {"purpose": "fine-tune", "dataset": dataset})
    if file["status"] != "processed":
        _show_faults(client, file["id"], console)
        raise typer.Exit(1)
    console.print(f"{path.name} is {file['id']}, every row checked.", style="dim", highlight=False)
    return str(file["id"])


def _show_faults(client: LedgerClient, file_id: str, console: Console) -> None:
    """Where each fault is and what it is; the service never tells the value."""
    path = f"/files/{file_id}/validation"
    faults = client.get(path, limit=FAULTS_SHOWN).json()
    table = Table(
        "line", "field", "fault", box=None, title="Rows with faults", title_justify="left"
    )
    for fault in faults["data"]:
        table.add_row(str(fault["line"]), fault["pointer"], fault["message"])
    console.print(table, highlight=False)
    if faults["has_more"]:
        console.print(f"More: GET /v1{path}, or the file's page on the dashboard.", highlight=False)
    console.print("Mend them and submit again; nothing was reserved.", style="dim")


def _show_price(price: Mapping[str, Any], console: Console) -> None:
    if "epsilon_job" not in price:
        console.print(f"This cannot be: {price['reason']}", highlight=False)
    else:
        share = 100 * float(price["population_share"])
        q, batch = price["sampling_probability"], price["batch_size"]
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for row in (
            ("guarantee", f"ε {price['epsilon_job']} at δ {price['delta']}, by {price['rule']}"),
            ("reserves", f"{share:.1f} % of the limit of {price['population']}"),
            ("steps", f"{price['steps_max']}, of {batch} patients expected (q = {q})"),
            ("takes", _minutes(price["minutes"])),
            *(("note", str(warning).replace("_", " ")) for warning in price["warnings"]),
        ):
            table.add_row(*row)
        console.print(table, highlight=False)
        if not price["feasible"]:
            console.print("The population's budget does not hold this.", highlight=False)
    for remedy in price["remedies"]:
        console.print(f"  try {REMEDIES.get(remedy, remedy)}", highlight=False)


def _minutes(told: Mapping[str, Any]) -> str:
    low, high, source = told["low"], told["high"], str(told["source"]).replace("_", " ")
    span = f"about {high}" if low == high else f"{low} to {high}"
    return f"{span} minute{'s' if high > 1 else ''}, as {source}"

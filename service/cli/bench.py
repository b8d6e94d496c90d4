"""`rldp bench`: measures what a release promises. The controller package does the work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Benchmarks that anyone can rerun.")

DEFAULT_DATA = Path("../shared/data")


@app.callback()
def bench() -> None:
    """Benchmarks that anyone can rerun."""


@app.command()
def utility(
    suite: Annotated[
        str, typer.Option(help="ci (3 minutes), cpu (an hour), long (jobs of 200 steps) or gpu.")
    ] = "ci",
    out: Annotated[
        Path, typer.Option(help="Folder of the results; the same folder goes on where it stopped.")
    ] = Path("build/bench/utility"),
    data: Annotated[
        Path, typer.Option(help="Folder with diabetes130/ and mts_dialog/.")
    ] = DEFAULT_DATA,
    model: Annotated[
        Path | None, typer.Option(help="Base model instead of the packaged medtext-gpt2-4m.")
    ] = None,
    arms: Annotated[
        str, typer.Option(help="Comma-separated, in order of worth. Default: all.")
    ] = "",
    corpus: Annotated[str, typer.Option(help="Comma-separated. Default: the suite's.")] = "",
    epsilon: Annotated[str, typer.Option(help="Comma-separated. Default: the suite's.")] = "",
    seeds: Annotated[int | None, typer.Option(min=1, help="Paired seeds of each arm.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes of one thread each. Default: all cores.")
    ] = None,
    only_table: Annotated[
        bool, typer.Option("--only-table", help="Write the table of what is finished; run nothing.")
    ] = False,
) -> None:
    """Compare every clipping and noise method at equal privacy, and write one table.

    Each arm trains the same LoRA adapter on the same patients at the same (epsilon, delta),
    batch and steps, through the training loop of a real job, its sensing charged. Learning
    rates are tuned per arm on notes that no table shows; seeds are paired; ratios carry 95 %
    bootstrap intervals. Results: results.jsonl (one line a run), table.md, table.json, PNGs.

    The corpora are public, so nothing here needs a budget; sampling and noise are seeded, to
    pair the arms, and therefore fit for public data only.

    Examples:

      rldp bench utility --suite cpu --out build/bench/utility

      rldp bench utility --suite cpu --arms reference,flat --corpus diabetes130 --epsilon 8

    Stop it with Ctrl-C and start it again: finished runs are kept, the table is written
    from whatever is there.
    """
    from controller.benchmark.command import Request, bench_utility
    from controller.errors import ControllerError
    from service.demo import models

    request = Request(
        suite=suite,
        data=data,
        packaged_model=model or models.path(),
        out=out,
        arms=_names(arms),
        corpora=_names(corpus),
        epsilons=_names(epsilon),
        seeds=seeds,
        jobs=jobs or os.cpu_count() or 1,
        only_table=only_table,
    )
    try:
        code = bench_utility(request)
    except ControllerError as problem:
        raise typer.BadParameter(str(problem)) from None
    typer.echo((out / "table.md").read_text(encoding="utf-8"))
    raise typer.Exit(code)


@app.command()
def audit(
    suite: Annotated[
        str, typer.Option(help="small (minutes on one core) or cpu (hours on two).")
    ] = "small",
    out: Annotated[
        Path, typer.Option(help="Folder of the results; the same folder goes on where it stopped.")
    ] = Path("build/bench/audit"),
    data: Annotated[
        Path, typer.Option(help="Folder with diabetes130/ and mts_dialog/.")
    ] = DEFAULT_DATA,
    model: Annotated[
        Path | None, typer.Option(help="Base model instead of the packaged medtext-gpt2-4m.")
    ] = None,
    only_table: Annotated[
        bool, typer.Option("--only-table", help="Write the table of what is finished; run nothing.")
    ] = False,
) -> None:
    """Attack RLDP, its fixed plan, flat clipping and plain training on the same notes.

    Membership inference (loss against the base model, Min-K%++) and extraction of inserted
    secrets, side by side, with 95 % intervals and the ceiling that the ledger's epsilon sets
    for any attack. Results: results.jsonl (one line a run), privacy.md, privacy.json.

    Such figures are computed on public corpora only, never on a hospital's patients.

    Examples:

      rldp bench audit --suite small --out build/bench/audit

    Stop it with Ctrl-C and start it again: finished runs are kept.
    """
    from controller.benchmark.privacy import PrivacyRequest, bench_audit
    from controller.errors import ControllerError
    from service.demo import models

    request = PrivacyRequest(
        suite=suite,
        data=data,
        packaged_model=model or models.path(),
        out=out,
        only_table=only_table,
    )
    try:
        bench_audit(request)
    except ControllerError as problem:
        raise typer.BadParameter(str(problem)) from None
    typer.echo((out / "privacy.md").read_text(encoding="utf-8"))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())

"""The guided run: from records to a released adapter with a checked certificate, through the API.

`rldp demo` starts the embedded service unless `--url` names one, and drives it with the keys
of the first start. Everything a later reader may want lies in the work directory at the end.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from dp_core.errors import PlanError
from service.demo import stages
from service.demo.client import Access, DemoClient, DemoError, read_keys
from service.demo.records import RecordsError
from service.demo.refusals import create_job, show_refusals, show_second_job_refused
from service.demo.screens import Screen
from service.demo.server import KEYS_NAME, LocalServer
from service.demo.stages import EPSILON, INTERVAL_STEPS, STEPS, STEPS_PER_MINUTE, DemoOptions

POLL_SECONDS = 1.0


def demo(
    data: Annotated[Path | None, typer.Option(help="Records: JSONL or CSV, gzip or not.")] = None,
    epsilon: Annotated[str, typer.Option(help="Guarantee of the job.")] = EPSILON,
    steps: Annotated[int, typer.Option(min=INTERVAL_STEPS, help="Training steps.")] = STEPS,
    minutes: Annotated[
        float | None, typer.Option(min=0.5, help="Choose the steps by time instead.")
    ] = None,
    patients: Annotated[
        int | None, typer.Option(min=100, help="Patients you can state publicly, at least.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="A running service, instead of our own.")] = None,
    keys: Annotated[Path | None, typer.Option(help="Its keys, as `up --keys-file` wrote.")] = None,
    signing_keys: Annotated[
        Path | None, typer.Option(help="Folder of steward-1.pem and steward-2.pem.")
    ] = None,
    work_dir: Annotated[Path, typer.Option(help="Where everything is kept.")] = Path(".demo"),
    keep: Annotated[
        bool | None, typer.Option(help="Leave the service running until Ctrl-C.")
    ] = None,
    show_refusals: Annotated[
        bool, typer.Option("--show-refusals", help="Also show what is refused.")
    ] = False,
) -> None:
    """A private fine-tuning job through the API, from records to a checked certificate."""
    if minutes is not None:
        steps = max(1, round(minutes * STEPS_PER_MINUTE / INTERVAL_STEPS)) * INTERVAL_STEPS
    options = DemoOptions(
        data=data,
        epsilon=epsilon,
        steps=steps,
        work_dir=work_dir,
        url=url,
        keys=keys,
        signing_keys=signing_keys,
        patients=patients,
        keep=sys.stdout.isatty() if keep is None else keep,
        show_refusals=show_refusals,
    )
    console = Console(highlight=False)
    signal.signal(signal.SIGTERM, _interrupt)  # or the service we started would outlive us
    try:
        run_demo(options, Screen(console))
    except (DemoError, RecordsError, PlanError) as problem:
        console.print(f"\n[red]The demonstration stopped.[/red] {problem}", soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("\nStopped.")
        raise typer.Exit(130) from None


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def run_demo(options: DemoOptions, screen: Screen) -> None:
    """All stages in order.

    Raises:
        DemoError, RecordsError, PlanError: it cannot go on; texts say what to do.
    """
    started = time.monotonic()
    run_dir = options.work_dir / time.strftime("%Y%m%d-%H%M%S")
    out = options.work_dir / "out"
    out.mkdir(parents=True, exist_ok=True)
    server = None if options.url else LocalServer(run_dir)
    try:
        screen.stage("Service", f"data, keys and log in {run_dir}" if server else "")
        access = server.start() if server else _given_access(options)
        client = DemoClient(access)
        screen.note(f"ready at {access.url}")
        run_dir.mkdir(parents=True, exist_ok=True)
        _whole_job(client, options, screen, run_dir, out)
        screen.console.print(f"\nFiles: {out}   Dashboard: {access.url}   ", soft_wrap=True)
        screen.note(f"sign in with the steward_1 key of {options.keys or run_dir / KEYS_NAME}")
        screen.note(f"{(time.monotonic() - started) / 60:.1f} minutes in all")
        if server and options.keep:
            _stay(server, screen)
    finally:
        if server:
            server.stop()


def _given_access(options: DemoOptions) -> Access:
    assert options.url is not None
    if options.keys is None:
        raise DemoError("--url needs --keys, the file that `rldp up --keys-file` wrote.")
    signing_dir = options.signing_keys or options.keys.parent / "data" / "keys"
    return Access(url=options.url, keys=read_keys(options.keys), signing_dir=signing_dir)


def _whole_job(
    client: DemoClient, options: DemoOptions, screen: Screen, run_dir: Path, out: Path
) -> None:
    prepared = stages.prepare_records(options, screen, run_dir)
    ground = stages.open_ground(client, options, screen, prepared, run_dir)
    request = stages.job_request(options, ground.file)
    screen.stage("Estimate", "nothing is spent by asking")
    estimate = client.call("submitter", "POST", "/fine_tuning/jobs/estimate", json=request)
    screen.estimate(estimate, ground.limit)
    if not estimate["feasible"]:
        raise DemoError("The job does not fit the population's limit. Lower --epsilon or --steps.")
    if options.show_refusals:
        screen.stage("Refusals")
        show_refusals(
            client,
            screen,
            population=ground.population,
            dataset=ground.dataset,
            request=request,
            work_dir=run_dir,
        )
    screen.stage("Private fine-tuning", "each control window is charged before its noise is drawn")
    job = create_job(client, request)
    if options.show_refusals:
        show_second_job_refused(client, screen, population=ground.population, request=request)
    job, losses = stages.watch(client, screen, job)
    stages.release(client, screen, job["id"])
    stages.download(client, job["id"], out)
    stages.verify(screen, out)
    predicate = json.loads((out / "certificate.json").read_text(encoding="utf-8"))["predicate"]
    sentence = stages.sentence_before_and_after(screen, prepared.source.prompt, out)
    screen.result(predicate, losses, sentence, prepared.source.prompt)


def _stay(server: LocalServer, screen: Screen) -> None:
    screen.console.print("The service stays up for you to look around. Ctrl-C ends it.")
    try:
        while server.is_alive():
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        screen.console.print("\nStopping.")

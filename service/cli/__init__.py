"""The `rldp` command: start, migrate, demonstrate, verify, export, make keys.

Modules behind a command are imported when it runs, so that `rldp --help` is quick and no
command loads what it does not need.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.admin import app as admin_app
from service.cli.bench import app as bench_app
from service.cli.data import app as data_app
from service.cli.jobs import app as jobs_app
from service.cli.jobs import submit, watch
from service.cli.ledger import app as ledger_app
from service.cli.people import app as people_app
from service.cli.policies import app as policy_app
from service.cli.witness import app as witness_app

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Where everything is kept. Default: RLDP_DATA_DIR, or .rldp."),
]

app = typer.Typer(
    name="rldp",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="""Fine-tune a language model on patients' notes with a privacy budget anyone can check.

    New here? `rldp demo` runs a whole job on synthetic patients and checks its certificate.
    Then `rldp up` starts the service; point any OpenAI client at http://127.0.0.1:8080/v1.
    """,
)
keys_app = typer.Typer(no_args_is_help=True, help="API keys, shown once when they are made.")
app.command()(submit)
app.command()(watch)
app.add_typer(jobs_app, name="jobs")
app.add_typer(ledger_app, name="ledger")
app.add_typer(witness_app, name="witness")
app.add_typer(policy_app, name="policy")
app.add_typer(keys_app, name="keys")
app.add_typer(admin_app, name="admin")
app.add_typer(people_app, name="people")
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command()
def up(
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = None,
    data_dir: DataDir = None,
    lease_seconds: Annotated[
        int | None,
        typer.Option(min=4, help="How long a silent worker keeps its job. Default 60."),
    ] = None,
    keys_file: Annotated[
        Path | None,
        typer.Option(help="Write the first start's API keys here (0600) instead of showing them."),
    ] = None,
) -> None:
    """Start API with dashboard, dispatcher and one worker, until Ctrl-C.

    The first start makes the database, one hospital with five people (admin, submitter, two
    stewards, auditor), an API key for each, shown once, and the stewards' signing keys in
    DATA_DIR/keys. Later starts change none of it. A job that was interrupted goes on by
    itself, from its last checkpoint.
    """
    from service.cli.options import chosen_settings
    from service.cli.parent import run_up

    settings = chosen_settings(data_dir=data_dir, port=port, lease_seconds=lease_seconds)
    raise typer.Exit(run_up(settings, keys_file=keys_file))


@app.command()
def migrate(data_dir: DataDir = None) -> None:
    """Bring the database to this release. `rldp up` does it by itself; production does not."""
    from service.cli.options import chosen_settings, prepare
    from service.migrate import upgrade

    settings = chosen_settings(data_dir=data_dir)
    prepare(settings)
    upgrade(settings.resolved_database_url)
    typer.echo("The database is at the schema of this release.")


@app.command("bootstrap")
def first_hospital(
    keys_file: Annotated[
        Path | None, typer.Option(help="Write the API keys here (0600) instead of showing them.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Fill an empty, migrated database: one hospital with five people and their keys.

    `rldp up` does it by itself; production does not. Set RLDP_KEYS_FOLDER to a folder of your
    own: the stewards' signing keys are made there, and belong on their machines.
    """
    from service.cli.first_start import first_start
    from service.cli.options import chosen_settings

    if not first_start(chosen_settings(data_dir=data_dir), keys_file=keys_file):
        typer.echo("A hospital is there already; nothing was changed.")


@app.command(context_settings=PASSED_ON, add_help_option=False)
def demo(context: typer.Context) -> None:
    """Run a whole private job on synthetic patients. `rldp demo --help` lists its options."""
    from service.demo.run import demo as guided_run

    guided = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    guided.command()(guided_run)
    guided(args=context.args, prog_name="rldp demo")


@app.command(context_settings=PASSED_ON, add_help_option=False)
def verify(context: typer.Context) -> None:
    """Recompute a ledger bundle offline. `rldp verify --help` lists the verifier's options.

    Runs the stand-alone verifier, one file that shares no code with the service. An auditor
    who trusts neither takes that file alone: deploy/verifier/verify_ledger.py.
    """
    from service.cli.verifier import run_verifier

    raise typer.Exit(run_verifier(context.args))


@app.command()
def audit(
    job: Annotated[str | None, typer.Argument(help="A job's id (ftjob-...), in any state.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Recompute this audit_report.json instead; runs nothing.")
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Its scores, an .npz file. Default: beside the report.")
    ] = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Plant known faults here and keep what rang.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Keep report and scores in a new folder in here.")
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(help="With --report: draw it into PNGs in this folder.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Attack a job's noise, clipping and draws; or recompute a saved report offline.

    `rldp audit JOB` runs the white-box self-test again, on this machine: the job's plan, base
    model, adapters, clip rule and kind of noise source, on random text with 1,000 public
    canaries. It reads no patient and charges nothing. Run it where the service's data lie.

    `rldp audit --report run_audit_report.json` needs neither service nor network: it
    recomputes coins, every figure of the self-test, the one-run bounds and the verdict from
    the report and its scores. audit_report.json is the report of the pre-flight. All files
    come with a released adapter; the certificate names their SHA-256. With `--plots FOLDER` it
    draws the attack on the job's own steps: scores of canaries in and out, ROC curve below the
    ledger's ceiling, lower bounds beside the ledger's epsilon (pip install 'rldp[bench]').

    `rldp audit --controls` plants ten known faults in this installation's own engine, on
    random text, and keeps which of them the self-test found. A job's audit passes only under
    the same code, library versions, image and kind of device. Workers do it by themselves once;
    here you see what they found.

    The self-test finds missing, halved or mis-scaled noise, unclipped groups and reused
    seeds. Silence is no proof of an epsilon.

    Exit codes: 0 no fault found; 1 a figure does not follow from the scores; 2 cannot be
    read, or no such job; 3 a fault was found.

    Examples:

      rldp audit ftjob-0123 --data-dir .rldp --out audits

      rldp audit --report audits/audit-ftjob-0123-5eed/audit_report.json

      rldp audit --report run_audit_report.json --plots pictures

      rldp audit --controls --data-dir .rldp
    """
    from service.cli.audit import audit_job, check_report
    from service.cli.options import chosen_settings

    if [job is not None, report is not None, controls].count(True) != 1:
        raise typer.BadParameter("Give a job, or --report FILE, or --controls.")
    if plots is not None and report is None:
        raise typer.BadParameter("--plots draws a saved report: give --report FILE.")
    if controls:
        from service.cli.audit_controls import run_controls

        raise typer.Exit(run_controls(chosen_settings(data_dir=data_dir)))
    if report is not None:
        raise typer.Exit(check_report(report, scores, plots))
    assert job is not None
    raise typer.Exit(audit_job(chosen_settings(data_dir=data_dir), job, out))


@keys_app.command("create")
def keys_create(
    person: Annotated[
        str, typer.Argument(help="A principal id (usr_...), or a role that one person has.")
    ],
    days: Annotated[int, typer.Option(min=1, max=365, help="Lifetime.")] = 90,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="Only this, such as jobs:write; repeat it. Default: all the role may."),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Make an API key for a person and show it, once. It cannot approve anything by itself."""
    from service.cli.keys import create_key
    from service.cli.options import chosen_settings

    settings = chosen_settings(data_dir=data_dir)
    create_key(settings, person=person, days=days, scopes=scope or ())


@app.command()
def api() -> None:
    """The API process alone, on RLDP_BIND. `rldp up` starts it for you."""
    from service.cli.children import run_api

    run_api()


@app.command()
def dispatcher() -> None:
    """The dispatcher alone: rings workers, takes jobs back from silent ones."""
    from service.cli.children import run_dispatcher

    run_dispatcher()


@app.command()
def worker() -> None:
    """One worker alone: one job at a time, on the GPU that CUDA_VISIBLE_DEVICES names."""
    from service.cli.children import run_worker_process

    run_worker_process()


def main() -> None:
    """Entry point."""
    app()

"""The `rldp` command: start, migrate, demonstrate, verify, export, make keys.

Modules behind a command are imported when it runs, so that `rldp --help` is quick and no
command loads what it does not need.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.ledger import app as ledger_app
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
app.add_typer(ledger_app, name="ledger")
app.add_typer(witness_app, name="witness")
app.add_typer(keys_app, name="keys")

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


@keys_app.command("create")
def keys_create(
    person: Annotated[
        str, typer.Argument(help="A principal id (usr_...), or a role that one person has.")
    ],
    days: Annotated[int, typer.Option(min=1, max=365, help="Lifetime.")] = 90,
    data_dir: DataDir = None,
) -> None:
    """Make an API key for a person and show it, once. It cannot approve anything by itself."""
    from service.cli.keys import create_key
    from service.cli.options import chosen_settings

    create_key(chosen_settings(data_dir=data_dir), person=person, days=days)


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

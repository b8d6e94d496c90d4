"""`rldp witness`: a witness that cosigns the ledgers of others, run outside their house."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Watch another house's ledger and cosign it.")

Folder = Annotated[Path, typer.Option("--dir", help="Where this witness keeps key and memory.")]


@app.command("init")
def init(
    folder: Folder,
    name: Annotated[str, typer.Option(help="Its public name, such as example.org/witness-1.")],
) -> None:
    """Make the witness's key and print its vkey, for RLDP_WITNESSES and auditors' policies."""
    from service.keyfiles import SigningKeyUnusable
    from service.witness.folder import WitnessFolderInvalid, prepare

    try:
        typer.echo(prepare(folder, name).text)
    except (WitnessFolderInvalid, SigningKeyUnusable) as problem:
        raise typer.BadParameter(str(problem)) from None


@app.command("trust")
def trust_log(
    folder: Folder,
    vkey: Annotated[str, typer.Argument(help="The log's vkey; `rldp ledger vkey` prints it.")],
    rotation: Annotated[
        Path | None, typer.Option(help="For the next key of a known log: the signed statement.")
    ] = None,
) -> None:
    """Let the witness watch one more log. Take its vkey from its people, not from its server."""
    from service.witness.folder import WitnessFolderInvalid, trust

    statement = None if rotation is None else rotation.read_text(encoding="utf-8")
    try:
        typer.echo(f"Watching {trust(folder, vkey, rotation=statement).name}.")
    except WitnessFolderInvalid as problem:
        raise typer.BadParameter(str(problem)) from None


@app.command("serve")
def serve(
    folder: Folder,
    bind: Annotated[str, typer.Option(help="host:port; a TLS proxy belongs in front.")] = (
        "127.0.0.1:8090"
    ),
) -> None:
    """Answer POST /add-checkpoint (c2sp.org/tlog-witness) until a signal ends it."""
    import uvicorn

    from service.keyfiles import SigningKeyUnusable
    from service.logs import configure_logging, logging_configuration
    from service.witness.folder import WitnessFolderInvalid, open_witness
    from service.witness.server import make_app

    host, _, port = bind.rpartition(":")
    if not host or not port.isdecimal():
        raise typer.BadParameter("--bind must be host:port.")
    try:
        witness = open_witness(folder)
    except (WitnessFolderInvalid, SigningKeyUnusable) as problem:
        raise typer.BadParameter(str(problem)) from None
    configure_logging()
    uvicorn.run(
        make_app(witness),
        host=host.strip("[]"),
        port=int(port),
        http="h11",  # bounds a request's head; a witness is asked a few times a minute
        log_config=logging_configuration(),
        access_log=False,
        server_header=False,
    )

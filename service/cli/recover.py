"""`rldp ledger recover`: how two stewards end a halt after an old backup was restored."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated

import typer

from service.cli.remote import DEFAULT_URL, KeyFile, Url

app = typer.Typer(
    no_args_is_help=True,
    help="""End a halt: the database is older than what witnesses or checkpoints have seen.

    Best of all, restore a backup as new as what was seen, before anybody signs. If there is
    none: (1) one steward proposes, and sees the limits that the restored books know; (2) if a
    limit was raised after the backup, sign that raise again as a grant before anybody
    approves: it may be spent, and the books no longer know of it; (3) the proposer and
    another steward approve, each with their own signing key and API key; (4) all budget that
    was free or held is booked as spent, since the lost charges cannot be listed, and the
    ledger opens again; (5) give the witnesses the key of `rldp ledger vkey --recovery 1`, and
    the auditors a new policy; (6) propose grants to go on.""",
)
Recovery = Annotated[str, typer.Argument(help="Its id, rst_….")]
SigningKey = Annotated[
    Path, typer.Option("--signing-key", help="Your Ed25519 key, PEM. It stays on this machine.")
]
ROUTE = "/ledger/recoveries"


@app.command("propose")
def propose(url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """Propose that everything free or held is spent. Moves nothing yet."""
    from service.cli.ledger_client import LedgerClient, show

    show(LedgerClient(url, key_file).post(ROUTE, {"rule": "charge_whole"}))


@app.command("show")
def show_one(recovery: Recovery, url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """The proposal, who has signed, and whether the ledger is open again."""
    from service.cli.ledger_client import LedgerClient, show

    show(LedgerClient(url, key_file).get(f"{ROUTE}/{recovery}"))


@app.command("approve")
def approve(
    recovery: Recovery, signing_key: SigningKey, url: Url = DEFAULT_URL, key_file: KeyFile = None
) -> None:
    """Sign for it. The last of two signatures cannot be taken back."""
    _decide(recovery, "approve", signing_key, url, key_file)


@app.command("reject")
def reject(
    recovery: Recovery, signing_key: SigningKey, url: Url = DEFAULT_URL, key_file: KeyFile = None
) -> None:
    """Sign against it; the ledger stays halted and another may be proposed."""
    _decide(recovery, "reject", signing_key, url, key_file)


def _decide(recovery: str, decision: str, key: Path, url: str, key_file: Path | None) -> None:
    from service.cli.ledger_client import LedgerClient, show
    from service.keyfiles import SigningKeyUnusable, signing_key
    from service.ledger.approvals import signing_text

    try:
        private = signing_key(key, make=False)
    except SigningKeyUnusable as error:
        raise typer.BadParameter(str(error)) from None
    client = LedgerClient(url, key_file)
    entry = client.get(f"{ROUTE}/{recovery}").json()["entry"]
    text = signing_text(origin=entry["origin"], leaf=entry["leaf"], decision=decision)
    signature = base64.b64encode(private.sign(text)).decode()
    told = {"decision": decision, "signature": signature}
    show(client.post(f"{ROUTE}/{recovery}/approvals", told))

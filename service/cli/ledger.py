"""`rldp ledger`: the auditor's questions of ledger.md 13, each as its route answers it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.recover import app as recover
from service.cli.remote import DEFAULT_URL, KeyFile, Url
from service.cli.rotation import app as rotation_app

if TYPE_CHECKING:
    from service.cli.ledger_client import LedgerClient

app = typer.Typer(no_args_is_help=True, help="Ask the ledger, take it out, say whom to trust.")
app.add_typer(rotation_app, name="rotate-key")
app.add_typer(recover, name="recover")

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Where everything is kept. Default: RLDP_DATA_DIR, or .rldp."),
]
Csv = Annotated[bool, typer.Option("--csv", help="A table instead of JSON lines.")]
Log = Annotated[str | None, typer.Option(help="Which log. Default: the newest.")]
Population = Annotated[str | None, typer.Option(help="Only of this population.")]
Recovery = Annotated[
    int,
    typer.Option(min=0, help="How many recoveries there were: each begins a new system log."),
]


def _client(url: str, key_file: Path | None) -> LedgerClient:
    from service.cli.ledger_client import LedgerClient

    return LedgerClient(url, key_file)


def _show(url: str, key_file: Path | None, path: str, **query: Any) -> None:
    from service.cli.ledger_client import show

    show(_client(url, key_file).get(path, **query))


def _list(url: str, key_file: Path | None, path: str, as_csv: bool, **query: Any) -> None:
    client = _client(url, key_file)
    if as_csv:
        for piece in client.table(path, **query):
            sys.stdout.write(piece)
        return
    for row in client.rows(path, **query):
        typer.echo(json.dumps(row, ensure_ascii=False))


@app.command("budget")
def budget(
    population: Annotated[str, typer.Argument(help="Its id, pop_….")],
    as_of: Annotated[int | None, typer.Option(help="As it stood after this entry.")] = None,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
) -> None:
    """What is left for a population, now or after an entry."""
    _show(url, key_file, f"/budgets/{population}", as_of=as_of)


@app.command("budgets")
def budgets(as_csv: Csv = False, url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """What is left for every population."""
    _list(url, key_file, "/budgets", as_csv)


@app.command("history")
def history(
    population: Annotated[str, typer.Argument(help="Its id, pop_….")],
    days: Annotated[int, typer.Option(help="How many days back.")] = 90,
    as_csv: Csv = False,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
) -> None:
    """How the budget was used up over time, and until when it lasts at this pace."""
    path = f"/budgets/{population}/history"
    if as_csv:
        typer.echo(_client(url, key_file).get(path, days=days, format="csv").text, nl=False)
    else:
        _show(url, key_file, path, days=days)


@app.command("entries")
def entries(
    population: Population = None,
    job: Annotated[str | None, typer.Option(help="Only of this job.")] = None,
    kind: Annotated[str | None, typer.Option("--type", help="Only of this type.")] = None,
    log: Log = None,
    as_csv: Csv = False,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
) -> None:
    """Everything that happened, oldest first."""
    query = {"population": population, "job": job, "type": kind, "log": log}
    _list(url, key_file, "/ledger/entries", as_csv, **query)


@app.command("entry")
def entry(index: int, log: Log = None, url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """One entry, and whether it is stored, integrated or published."""
    _show(url, key_file, f"/ledger/entries/{index}", log=log)


@app.command("statement")
def statement(job: str, url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """Everything about one job: amounts, windows, claim, indexes."""
    _show(url, key_file, f"/ledger/jobs/{job}/statement")


@app.command("grants")
def grants(
    population: Population = None,
    as_csv: Csv = False,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
) -> None:
    """Who raised a limit, and who agreed."""
    _list(url, key_file, "/grants", as_csv, population=population)


@app.command("refusals")
def refusals(
    population: Population = None,
    as_csv: Csv = False,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
) -> None:
    """What was refused, and by how much it did not fit."""
    _list(url, key_file, "/ledger/refusals", as_csv, population=population)


@app.command("releases")
def releases(as_csv: Csv = False, url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """Which models were let out, by whom, with which verdict."""
    _list(url, key_file, "/releases", as_csv)


@app.command("certificate")
def certificate(
    job: str,
    signed: Annotated[bool, typer.Option(help="In its signed DSSE envelope.")] = False,
    proof: Annotated[bool, typer.Option(help="The proof that the log names it.")] = False,
    label: Annotated[bool, typer.Option(help="Its nutrition label, as text.")] = False,
    registry: Annotated[
        bool, typer.Option(help="As a draft record of the OpenDP deployments registry, in YAML.")
    ] = False,
    pdf: Annotated[
        Path | None, typer.Option(help="Write it as PDF. An existing file is refused.")
    ] = None,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
) -> None:
    """The privacy certificate of a job, byte for byte, in another form, or its proof."""
    chosen = [accept for wanted, accept in (
        (signed, "application/vnd.dsse.envelope.v1+json"),
        (label, "text/plain"),
        (registry, "application/yaml"),
    ) if wanted]  # fmt: skip
    if len(chosen) + proof + (pdf is not None) > 1:
        raise typer.BadParameter("Choose one of --signed, --proof, --label, --registry, --pdf.")
    if proof:
        _show(url, key_file, f"/certificates/{job}/proof")
        return
    client = _client(url, key_file)
    if pdf is not None:
        client.download(f"/certificates/{job}", pdf, accept="application/pdf")
        typer.echo(f"Wrote {pdf}.")
        return
    accept = chosen[0] if chosen else "application/json"
    sys.stdout.write(client.get(f"/certificates/{job}", accept=accept).text)


@app.command("sign")
def sign(
    key: Annotated[Path, typer.Option(help="Your Ed25519 key, PEM. It never leaves this host.")],
    origin: Annotated[str, typer.Option(help="Origin of the log.")],
    leaf: Annotated[str, typer.Option(help="Leaf of the proposal, 64 hex digits.")],
    decision: Annotated[str, typer.Option(help="approve or reject.")],
) -> None:
    """Sign a decision on a grant or a release, offline; prints the signature to paste."""
    from service.cli.signing import print_signature

    print_signature(key, origin=origin, leaf=leaf, decision=decision)


@app.command("checkpoint")
def checkpoint(log: Log = None, url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """The newest signed checkpoint, and the witnessed one above it. Keep what it prints."""
    _show(url, key_file, "/ledger/checkpoint", log=log)


@app.command("inclusion")
def inclusion(
    index: int,
    size: Annotated[int | None, typer.Option(help="Under the checkpoint of this size.")] = None,
    log: Log = None,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
) -> None:
    """Proof that an entry stands under a signed checkpoint."""
    _show(url, key_file, "/proofs/inclusion", idx=index, size=size, log=log)


@app.command("consistency")
def consistency(
    earlier: Annotated[int, typer.Argument(help="Size of the earlier checkpoint.")],
    later: Annotated[int, typer.Argument(help="Size of the later one.")],
    log: Log = None,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
) -> None:
    """Proof that nothing was rewritten between two checkpoints."""
    query = {"from": earlier, "to": later, "log": log}
    _show(url, key_file, "/proofs/consistency", **query)


@app.command("receipt")
def receipt(index: int, log: Log = None, url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """The signed receipt of an entry, for `rldp verify --receipt`; with proof once it has one."""
    told = _client(url, key_file).get(f"/ledger/receipts/{index}", log=log).json()
    sys.stdout.write(told["proof"] or told["receipt"])


@app.command("anomalies")
def anomalies(
    kind: Annotated[str | None, typer.Option(help="Only of this kind.")] = None,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
) -> None:
    """What to look at first: lost windows, old holds, stale witnesses, overlaps."""
    _show(url, key_file, "/ledger/anomalies", kind=kind)


@app.command("access")
def access(as_csv: Csv = False, url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """Who looked at what."""
    _list(url, key_file, "/audits/access", as_csv)


@app.command("forecast")
def forecast(
    population: str,
    job: Annotated[str | None, typer.Option(help="Jobs like this one.")] = None,
    reserve_pico: Annotated[str | None, typer.Option(help="Jobs that reserve this much.")] = None,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
) -> None:
    """How many more such jobs fit. Reserves nothing."""
    from service.cli.ledger_client import show

    wanted = {"population": population, "job": job, "reserve_pico": reserve_pico}
    body = {name: value for name, value in wanted.items() if value is not None}
    show(_client(url, key_file).post("/ledger/forecast", body))


@app.command("disclosures")
def disclosures(
    index: Annotated[int | None, typer.Option("--entry", help="Only of this entry.")] = None,
    log: Log = None,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
) -> None:
    """The personal values beside the log, such as why a grant was asked for. Stewards only."""
    _show(url, key_file, "/ledger/disclosures", idx=index, log=log)


@app.command("redact")
def redact(
    index: Annotated[int, typer.Argument(help="The entry that commits to the value.")],
    ground: Annotated[str, typer.Option(help="Legal ground, such as gdpr_17_1_a.")],
    path: Annotated[str, typer.Option(help="Which value of it.")] = "justification",
    log: Log = None,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
) -> None:
    """Erase a personal value for ever. Its entry stays, and every proof holds. Stewards only."""
    from service.cli.ledger_client import show

    body = {"legal_ground": ground, "path": path}
    show(_client(url, key_file).post(f"/ledger/entries/{index}/redactions", body, log=log))


@app.command("bundle")
def bundle(
    out: Annotated[Path, typer.Option(help="The zip to write. An existing file is refused.")],
    since: Annotated[
        int | None, typer.Option(help="Size of a checkpoint you keep: adds proofs of growth.")
    ] = None,
    system_since: Annotated[
        int | None, typer.Option(help="Size of the system checkpoint you keep, with --since.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Up to the checkpoint of this size.")] = None,
    log: Log = None,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
) -> None:
    """Take the whole ledger with all evidence from a running service, for `rldp verify`."""
    query: dict[str, Any] = {"since": since, "system_since": system_since, "size": size, "log": log}
    _client(url, key_file).download("/ledger/bundle", out, **query)
    typer.echo(f"Wrote {out}. Check it with: rldp verify {out} --policy policy.json")


@app.command("export")
def export(
    out: Annotated[Path, typer.Option(help="The zip to write. An existing file is refused.")],
    data_dir: DataDir = None,
    tenant: Annotated[
        str | None, typer.Option(help="Tenant id; needed if there are several.")
    ] = None,
) -> None:
    """Write the same bundle on the host of the database, without a running service."""
    from service.cli.export import export_bundle
    from service.cli.options import chosen_settings

    export_bundle(chosen_settings(data_dir=data_dir), out=out, tenant_id=tenant)


@app.command("fsck")
def fsck(data_dir: DataDir = None) -> None:
    """Check every invariant from the rows, on the host of the database. Exit 1 on a finding."""
    from service.cli.fsck import check_ledger
    from service.cli.options import chosen_settings

    raise typer.Exit(check_ledger(chosen_settings(data_dir=data_dir)))


@app.command("vkey")
def vkey(data_dir: DataDir = None, recovery: Recovery = 0) -> None:
    """Print the key under which witnesses know this ledger, for `rldp witness trust`."""
    from service.cli.options import chosen_settings
    from service.cli.policy import print_vkey

    print_vkey(chosen_settings(data_dir=data_dir), recovery=recovery)


@app.command("policy")
def policy(
    out: Annotated[Path, typer.Option(help="The policy.json to write for an auditor.")],
    max_age: Annotated[
        int, typer.Option(min=60, help="How old witnesses' signatures may be, in seconds.")
    ] = 3600,
    data_dir: DataDir = None,
    recovery: Recovery = 0,
) -> None:
    """Write what an auditor must trust: log and receipt keys, witnesses and their quorum."""
    from service.cli.options import chosen_settings
    from service.cli.policy import write_policy

    settings = chosen_settings(data_dir=data_dir)
    write_policy(settings, out=out, max_age_seconds=max_age, recovery=recovery)

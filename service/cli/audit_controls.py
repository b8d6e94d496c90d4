"""`rldp audit --controls`: plants every fault on this installation and keeps what rang."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from service.cli.audit import AuditExit
from service.settings import Settings

if TYPE_CHECKING:
    from dp_core.audit.faults import ControlResult


def run_controls(settings: Settings) -> AuditExit:
    """Every fault, then the correct engine, on the packaged base model. Reads no data.

    Whatever a worker found before is replaced, and a worker that plants now is waited for.
    NO_FAULT: each required control tripped and the correct runs stayed silent.
    """
    from transformers.utils import logging as transformers_logging

    from service.audits.controls import only_one
    from service.worker.planting import device_class, plant

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    typer.echo(f"{'planted fault':22} {'adjusted p':>10} {'rang at step':>13}")
    with only_one(settings, device_class()):
        planted = plant(settings, _tell)
    typer.echo(f"\nKept: {planted.path}.")
    typer.echo("Audits of this code, image and kind of device cite it from now on.")
    for name in planted.missing:
        typer.echo(f"Required and not tripped: {name}. No audit passes here.", err=True)
    if planted.false_alarms:
        typer.echo("It rang without a fault, too. No audit passes here.", err=True)
    return AuditExit.FAULT if planted.missing or planted.false_alarms else AuditExit.NO_FAULT


def _tell(result: ControlResult, runs: int) -> None:
    if runs > 1:
        typer.echo(f"{f'{result.name}, {runs} runs':22} {result.min_p:10.1e}")
        return
    typer.echo(f"{result.name:22} {result.min_p:10.1e} {result.rang_at_step or 'not':>13}")

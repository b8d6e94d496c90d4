"""`rldp audit`: attacks a job's plan again, or recomputes a saved report offline."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from dp_core.audit.saved import SavedAudit
    from service.settings import Settings


class AuditExit(IntEnum):
    """What `rldp audit` says by its exit code."""

    NO_FAULT = 0
    DIFFERS = 1  # a figure does not follow from the scores
    UNREADABLE = 2  # not a report, no scores, no such job
    FAULT = 3  # figures follow, and they contradict the ledger's claim


def check_report(path: Path, scores: Path | None, plots: Path | None = None) -> AuditExit:
    """Recomputes every figure of a saved report from its scores. Needs no network, no torch.

    `plots`: where to draw it, if every figure agrees.

    Raises:
        typer.BadParameter: pictures are asked for and matplotlib is not installed.
    """
    from dp_core.audit.errors import AuditError
    from dp_core.audit.saved import SavedAudit, differences
    from service.cli import audit_plots

    if plots is not None and not audit_plots.is_available():
        raise typer.BadParameter("--plots needs matplotlib: pip install 'rldp[bench]'.")
    try:
        saved = SavedAudit.from_json(path.read_bytes())
        place = scores or path.parent / saved.scores_file
        content = place.read_bytes()
        found = differences(saved, content)
    except AuditError as error:
        typer.echo(str(error), err=True)
        return AuditExit.UNREADABLE
    except OSError as error:
        typer.echo(f"{error.filename} cannot be read: {error.strerror}.", err=True)
        return AuditExit.UNREADABLE
    tell(saved)
    if found:
        typer.echo("")
        for difference in found:
            typer.echo(f"DIFFERS: {difference}")
        return AuditExit.DIFFERS
    typer.echo("\nRecomputed from report and scores: every figure and the verdict agree.")
    typer.echo("That the scores are those of the released sums is the worker's word.")
    if plots is not None and saved.claim is None:
        typer.echo("No pictures: a pre-flight attacks no job. Take run_audit_report.json.")
    elif plots is not None:
        for picture in audit_plots.write_plots(saved, content, plots):
            typer.echo(f"Drawn: {picture}")
    return AuditExit.FAULT if saved.report.verdict == "FAIL" else AuditExit.NO_FAULT


def audit_job(settings: Settings, job_id: str, out: Path | None) -> AuditExit:
    """The self-test again on the plan and model of a job; reads no patient, charges nothing."""
    import secrets

    from transformers.utils import logging as transformers_logging

    from dp_core.audit.errors import AuditError
    from dp_core.audit.preflight import run_preflight
    from dp_core.audit.saved import REPORT_FILE, SCORES_FILE
    from dp_core.base_model import load_base
    from dp_core.errors import UnsupportedError
    from dp_core.lora import attach_adapters
    from dp_core.noise import make_noise_source
    from service.cli.audited_job import find_job
    from service.worker.audit import code_version
    from service.worker.inputs import performance_of

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    job = find_job(settings, job_id)
    if job is None:
        typer.echo(f"No job {job_id} in {settings.data_dir.resolve()}.", err=True)
        return AuditExit.UNREADABLE
    plan, performance = job.plan, performance_of(settings)
    try:
        base, _ = load_base(job.model_dir, performance, expected_digest=plan.base_model_digest)
        model = attach_adapters(base, plan.adapter, seed=plan.seed, performance=performance)
        found = run_preflight(
            plan=plan,
            model=model.to(performance.device),
            vocabulary=int(base.config.vocab_size),
            performance=performance,
            noise_source=make_noise_source(plan.noise_source),
            job_id=job_id,
            code_commit=code_version(),
            image_digest=settings.image_digest or None,
        )
    except (AuditError, UnsupportedError, OSError) as error:
        typer.echo(f"The model of {job_id} cannot be audited: {error}", err=True)
        return AuditExit.UNREADABLE
    tell(found.saved)
    if out is not None:
        folder = out / f"audit-{job_id}-{secrets.token_hex(4)}"
        folder.mkdir(parents=True)
        (folder / REPORT_FILE).write_bytes(found.saved.to_json())
        (folder / SCORES_FILE).write_bytes(found.scores)
        typer.echo(f"\nSaved: {folder / REPORT_FILE}; check it with rldp audit --report.")
    return AuditExit.FAULT if found.is_fault_found else AuditExit.NO_FAULT


def tell(saved: SavedAudit) -> None:
    """The report in plain words: what was looked at, what was found, what was not."""
    from dp_core.audit.report import statements
    from dp_core.audit.selftest import ALARM_LEVEL

    report = saved.report
    test, canary = report.selftest, report.canary
    typer.echo(f"Audit of {report.job_id}, tier {report.tier}")
    if test is not None and canary is not None:
        variances = [v for v in test.var_ratio if v is not None]
        means = [v for v in test.mean_ratio if v is not None]
        typer.echo(
            f"Self-test: {test.steps} steps, {canary.m} gradient canaries of which "
            f"{canary.n_included} took part, {len(saved.layout)} clip groups"
        )
        _tell_range("noise variance, 1 is right", variances)
        _tell_range("clipped canary, 1 is right, of few draws", means)
        _tell_one("lag-1 correlation, 0 is right", test.lag1)
        _tell_one("largest correlation of two groups", test.cross_group)
        _tell_one(f"smallest adjusted p, alarm below {ALARM_LEVEL:.0e}", test.min_p)
    typer.echo(f"Verdict: {report.verdict}")
    for line in statements(report):
        typer.echo(line)


def _tell_range(name: str, values: list[float]) -> None:
    told = f"{min(values):.3f} to {max(values):.3f} over groups" if values else "not observed"
    typer.echo(f"  {name}: {told}")


def _tell_one(name: str, value: float | None) -> None:
    typer.echo(f"  {name}: {'not observed' if value is None else f'{value:.3g}'}")

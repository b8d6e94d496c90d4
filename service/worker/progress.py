"""Carries released figures of a run into the job's events and charts, and a stop back.

Only `WindowReport` and `EvaluationReport` come in: public and released values. Numbers
are stored as decimal text.
"""

from __future__ import annotations

import math
import threading
from pathlib import Path

from dp_core.ports import ChunkPermit, EvaluationReport, StopRequest, WindowReport
from dp_core.telemetry import WindowTelemetry
from service.database import Database
from service.jobs.lifecycle import State
from service.jobs.runtime import Metric, record_evaluation, record_step, record_window


class JobProgress:
    """`dp_core.ports.ProgressSink` over the job's tables. `stop` is set by a signal.

    A pause comes with the answer to each report, so it costs no question of its own. One
    that comes between the last report of a window and the next charge is met by the fence.
    A worker that leaves asks for the same by a file, `leave_note`.
    """

    def __init__(
        self,
        db: Database,
        *,
        job_id: str,
        epoch: int,
        stop: threading.Event,
        leave_note: Path | None = None,
    ) -> None:
        self._db, self._job_id, self._epoch, self._stop = db, job_id, epoch, stop
        self._state = State.STARTING
        self._leave_note = leave_note

    def window_opened(self, permit: ChunkPermit) -> None:
        """Nothing to add: the ledger's entry tells it."""

    def step_finished(self, step: int) -> None:
        self._state = record_step(self._db, self._job_id, self._epoch, step)

    def window_finished(self, report: WindowReport) -> None:
        seen = report.telemetry
        loss = "" if seen.loss is None else f", noised training loss {_text(seen.loss.value)}"
        self._state = record_window(
            self._db,
            self._job_id,
            self._epoch,
            step=seen.step,
            window=seen.chunk,
            metrics=metrics_of(seen),
            event_message=f"Window {seen.chunk} done: step {seen.step} of "
            f"{seen.steps_planned}{loss}.",
            event_data=_event_data(seen),
        )

    def evaluated(self, report: EvaluationReport) -> None:
        record_evaluation(
            self._db,
            self._job_id,
            self._epoch,
            step=report.step,
            loss=_text(report.loss.value),
            std=_text(report.loss.std),
            reference=report.reference,
        )

    def stop_requested(self) -> StopRequest | None:
        if self._stop.is_set():
            return "cancel"
        leaves = self._leave_note is not None and self._leave_note.exists()
        return "pause" if leaves or self._state is State.PAUSING else None


def metrics_of(seen: WindowTelemetry) -> list[Metric]:
    """The declared series of one window."""
    step = seen.step
    metrics = [
        Metric(name="noise_multiplier", step=step, value_text=_text(seen.noise_multiplier)),
        Metric(name="learning_rate", step=step, value_text=_text(seen.learning_rate)),
    ]
    if seen.loss is not None:
        metrics.append(Metric(name="loss_noised", step=step, value_text=_text(seen.loss.value)))
    for group in seen.groups:
        figures = {
            "clip_norm": group.clip_norm,
            "noise_std": group.noise_std,
            "noise_share": group.share,
            "rate_factor": group.rate_factor,
        }
        if group.clip_fraction is not None:
            figures["clip_fraction_noised"] = group.clip_fraction.value
        metrics += [
            Metric(name=name, group=group.group_id, step=step, value_text=_text(value))
            for name, value in figures.items()
            if math.isfinite(value)  # a diverged run shows a gap and goes on being charged
        ]
    return metrics


def _event_data(seen: WindowTelemetry) -> dict[str, str | int]:
    data: dict[str, str | int] = {
        "step": seen.step,
        "window": seen.chunk,
        "noise_multiplier": _text(seen.noise_multiplier),
    }
    if seen.loss is not None:
        data["loss_noised"] = _text(seen.loss.value)
        data["loss_noise_std"] = _text(seen.loss.std)
    return data


def _text(value: float) -> str:
    """Six significant digits without an exponent."""
    text = f"{value:.6g}"
    return format(float(text), "f").rstrip("0").rstrip(".") if "e" in text else text

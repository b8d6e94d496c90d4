"""A job as the API shows it: OpenAI's shape with our privacy, controller and progress added.

Every value is public or released. `trained_tokens` is always null and progress counts
steps, since both would otherwise tell the size of the data (service.md 5.1).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from dp_core.accounting import epsilon_so_far
from dp_core.events import PoissonGaussian
from service.artifacts import service as artifact_store
from service.audits import service as audits
from service.database import now_us
from service.jobs import repository
from service.jobs.lifecycle import (
    OPENAI_STATUS,
    TERMINAL,
    WITH_ADAPTER,
    State,
    status_message,
)
from service.jobs.models import Job, JobCheckpoint, JobEvent, JobMetric
from service.ledger import service as ledger
from service.ledger import spend
from service.ledger.models import ReservationBlock
from service.metrics import DECLARATIONS

SECOND = 1_000_000
PRIORITIES = {-1: "low", 0: "normal", 1: "high"}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What other rooms know of a job. The defaults are those of a job nobody has tried yet."""

    amounts: Mapping[str, ReservationBlock]
    charged: Sequence[PoissonGaussian] = ()  # on the training block
    audit: Mapping[str, Any] | None = None
    release: str = "none"


def jobs_answer(session: Session, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Several jobs; what other rooms know of them is read once for all."""
    ids = [job.id for job in jobs]
    amounts = repository.amounts_of(session, ids)
    charged = spend.events_of_jobs(session, ids, "train")
    found = audits.summaries_of(session, ids)
    releases = artifact_store.release_states(session, ids)
    return [
        shown(
            job,
            Facts(
                amounts=amounts.get(job.id, {}),
                charged=charged.get(job.id, ()),
                audit=found.get(job.id),
                release=releases[job.id],
            ),
        )
        for job in jobs
    ]


def job_answer(session: Session, job: Job) -> dict[str, Any]:
    return jobs_answer(session, [job])[0]


def shown(job: Job, facts: Facts) -> dict[str, Any]:
    """One job, from its row and what is known of it."""
    state, spec, plan = State(job.state), json.loads(job.spec), json.loads(job.plan)
    parameters = spec["hyperparameters"]
    return {
        "object": "fine_tuning.job",
        "id": job.id,
        "created_at": job.created_at // SECOND,
        "model": job.model,
        "training_file": job.training_file_id,
        "validation_file": None,
        "status": OPENAI_STATUS[state],
        "seed": job.seed,
        "organization_id": job.tenant_id,
        "metadata": dict(job.labels),
        "hyperparameters": {**parameters, "batch_size": plan["batch_size_expected"]},
        "method": {"type": "supervised", "supervised": {"hyperparameters": parameters}},
        "integrations": [],
        "result_files": [],
        "fine_tuned_model": fine_tuned_model(job) if state in WITH_ADAPTER else None,
        "finished_at": None if job.finished_at is None else job.finished_at // SECOND,
        "estimated_finish": _estimated_finish(job, plan),
        "trained_tokens": None,
        "error": _error(job, state),
        "state": state.value,
        "reason_code": job.reason_code,
        "status_message": status_message(job.reason_code),
        "priority": PRIORITIES[job.priority],
        "attempt": job.attempt,
        "dataset_version": job.dataset_version_id,
        "suffix": spec["suffix"],
        "privacy": _privacy(job, plan, facts),
        "controller": {
            "type": plan["controller_type"],
            "policy": "default",
            "interval_steps": plan["steps_per_chunk"],
            "signals": ["noised_gradients", "clip_bits", "clipped_loss"],
        },
        "adapter": {
            "type": "lora",
            "r": plan["adapter"]["r"],
            "alpha": plan["adapter"]["alpha"],
            "target_modules": plan["adapter"]["target_modules"] or "auto",
        },
        "progress": {
            "step": job.step,
            "steps_max": plan["steps_planned"],
            "window": job.window_no,
            "eta_minutes": eta_minutes(job, plan),
        },
        "audit": facts.audit,
        "release": {"state": facts.release},
    }


def fine_tuned_model(job: Job) -> str:
    """Name of the adapter: base, hospital, the caller's suffix, job."""
    suffix = json.loads(job.spec)["suffix"] or ""
    return f"ft:{job.model}:{job.tenant_id}:{suffix}:{job.id}"


def _error(job: Job, state: State) -> dict[str, Any] | None:
    if state is not State.FAILED:
        return None
    return {"code": job.reason_code, "message": status_message(job.reason_code), "param": None}


def _privacy(job: Job, plan: dict[str, Any], facts: Facts) -> dict[str, Any]:
    train = facts.amounts["train"]
    is_fixed = plan["mode"] == "fixed_sigma"
    return {
        "population": job.population_id,
        "unit": plan["unit"],
        "relation": plan["relation"],
        "mode": plan["mode"],
        "rule": "pld_fixed_schedule" if is_fixed else "rdp_filter",
        "alpha_population": job.alpha_population,
        "alpha_job": plan["alpha_job"],
        "delta": plan["delta"],
        "target_epsilon": plan["target_epsilon"],
        "noise_levels": plan["noise_levels"],
        "noise_schedule": plan.get("noise_schedule"),  # None: one level, or chosen online
        "sampling_probability": plan["sampling_probability"],
        "steps_max": plan["steps_planned"],
        "steps_started_max": plan["steps_started_max"],
        "reserved_pico": str(train.reserved_pico),
        "spent_pico": str(train.spent_pico),
        "blocks": [
            {
                "block": name,
                "reserved_pico": str(block.reserved_pico),
                "spent_pico": str(block.spent_pico),
                "steps_max": block.steps_max,
                "steps_started": block.steps_started,
            }
            for name, block in facts.amounts.items()
        ],
        "epsilon_so_far": {
            "value": epsilon_so_far(facts.charged, plan["delta"], is_fixed_schedule=is_fixed),
            "guarantee": False,
        },
        "epsilon_certified": (plan["epsilon_certified"] if job.state in WITH_ADAPTER else None),
    }


def _seconds_left(job: Job, plan: dict[str, Any]) -> float | None:
    """By the pace so far; None before the first step and after the end."""
    if job.state != State.RUNNING or job.step < 1 or job.started_at is None:
        return None
    elapsed = (job.progress_at - job.started_at) / SECOND
    steps_left: int = plan["steps_planned"] - job.step
    return elapsed / job.step * steps_left


def eta_minutes(job: Job, plan: dict[str, Any]) -> int | None:
    """Whole minutes left by the pace so far; None while there is none to tell."""
    left = _seconds_left(job, plan)
    return None if left is None else math.ceil(left / 60)


def _estimated_finish(job: Job, plan: dict[str, Any]) -> int | None:
    """Rounded up to a minute: finer times would tell about the data."""
    left = _seconds_left(job, plan)
    if left is None or job.state in TERMINAL:
        return None
    return math.ceil((now_us() / SECOND + left) / 60) * 60


def event_answer(event: JobEvent) -> dict[str, Any]:
    return {
        "object": "fine_tuning.job.event",
        "id": event.id,
        "created_at": event.created_at // SECOND,
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": json.loads(event.data),
    }


def attempts_answer(session: Session, job: Job) -> dict[str, Any]:
    """Each try of a worker, and its windows as the ledger charged them."""
    history = ledger.job_history(session, job.id)
    return {
        "object": "list",
        "data": [
            {
                "object": "fine_tuning.job.attempt",
                "epoch": attempt["epoch"],
                "worker": attempt["worker"],
                "started_at": attempt["time"],
                "windows": [
                    {
                        "window": window["window"],
                        "first_step": window["first_step"],
                        "steps": window["steps"],
                        "noise_multiplier": window["level"],
                        "settings": window["settings"],
                        "outcome": window["outcome"],
                        "reason": window.get("reason"),
                    }
                    for window in history["windows"]
                    if window["epoch"] == attempt["epoch"]
                ],
            }
            for attempt in history["attempts"]
        ],
    }


def checkpoint_answers(
    session: Session, job: Job, checkpoints: Sequence[JobCheckpoint]
) -> list[dict[str, Any]]:
    """Checkpoints with the noised loss of their step, if one was released there."""
    points = repository.metrics_of(session, job.id, names=["loss_noised"])
    losses = {point.step: float(point.value) for point in points}
    return [
        {
            "object": "fine_tuning.job.checkpoint",
            "id": checkpoint.id,
            "created_at": checkpoint.created_at // SECOND,
            "fine_tuning_job_id": job.id,
            "fine_tuned_model_checkpoint": (f"{fine_tuned_model(job)}:ckpt-step-{checkpoint.step}"),
            "step_number": checkpoint.step,
            "metrics": {
                "step": checkpoint.step,
                "train_loss": losses.get(checkpoint.step),
                "epsilon_so_far": checkpoint.epsilon_so_far,
            },
        }
        for checkpoint in checkpoints
    ]


def metrics_answer(points: Sequence[JobMetric], *, max_points: int) -> dict[str, Any]:
    """Series by name and group, thinned to `max_points` each, ends kept."""
    series: dict[tuple[str, str], list[list[Any]]] = {}
    for point in points:
        series.setdefault((point.name, point.group_id), []).append([point.step, point.value])
    return {
        "object": "fine_tuning.job.metrics",
        "series": [
            {
                "name": name,
                "class": DECLARATIONS[name].release_class.value,
                "group": group or None,
                "points": _thinned(values, max_points),
            }
            for (name, group), values in series.items()
        ],
    }


def _thinned(values: list[list[Any]], max_points: int) -> list[list[Any]]:
    if len(values) <= max_points:
        return values
    if max_points == 1:
        return values[-1:]
    last = len(values) - 1
    return [values[round(i * last / (max_points - 1))] for i in range(max_points)]

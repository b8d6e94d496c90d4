"""What the page of one job shows: state, claim, charts, events, certificate, files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy.orm import Session

from service.artifacts.endpoints import artifact_list
from service.audits import service as audits
from service.auth.subject import Subject
from service.certificates.label import LabelFact, label_facts
from service.certificates.service import visible_certificate
from service.dashboard.charts import HeatMap, History, LineChart, Point, heat_map, line_chart
from service.dashboard.job_facts import (
    LOSS,
    Progress,
    epsilon_points,
    history_of,
    plan_of,
    progress_of,
    series,
    with_stds,
)
from service.jobs.lifecycle import TERMINAL, State, status_message
from service.jobs.models import Job, JobEvent
from service.jobs.repository import amounts_of, page_of_events, visible_job
from service.ledger.errors import LedgerNotFound
from service.populations.models import Population

EVENTS_SHOWN = 40
EVENTS_READ = 2000
TRAINING_LOSS = "loss_noised"
NOISE = "noise_multiplier"
# What the policy chose for each LoRA tensor in each window: series, caption, logarithmic.
MAPS = (
    ("clip_norm", "Clip norm", True),
    ("noise_share", "Noise share", False),
    ("rate_factor", "Learning-rate factor", True),
)


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One labelled number; `note` says what it does or does not promise."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class LossChange:
    """Held-out loss before the first and after the last window, both noised and charged."""

    before: Point
    after: Point

    @property
    def perplexities(self) -> tuple[float, float]:
        return math.exp(min(self.before.value, 30)), math.exp(min(self.after.value, 30))


@dataclass(frozen=True, kw_only=True)
class Label:
    """The nutrition label of the certificate (ledger.md 15)."""

    facts: tuple[LabelFact, ...]
    verdict: str
    digest: str
    has_page: bool  # for the reader: admins read no evidence


@dataclass(frozen=True, kw_only=True)
class FileLine:
    """A file of the job, whether or not it may leave yet."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class JobPage:
    job: Job
    has_ended: bool
    why: str
    population: Population
    progress: Progress
    change: LossChange | None
    facts: tuple[Fact, ...]
    lines: tuple[LineChart, ...]
    maps: tuple[HeatMap, ...]
    missing: tuple[str, ...]  # captions of maps that nothing was recorded for
    events: tuple[JobEvent, ...]
    label: Label | None
    files: tuple[FileLine, ...]
    release: str


def job_page(session: Session, subject: Subject, job_id: str) -> JobPage:
    """Everything on the page.

    Raises:
        JobNotFound: absent, or not the caller's to see.
    """
    job = visible_job(session, subject, job_id)
    events, _ = page_of_events(session, job.id, after=None, limit=EVENTS_READ)
    found = series(session, job.id, LOSS, TRAINING_LOSS, NOISE, *(name for name, _, _ in MAPS))
    history = history_of(session, job)
    held_out = with_stds(found[LOSS].get("", []), events, LOSS, "noise_std")
    training = found[TRAINING_LOSS].get("", [])
    training = with_stds(training, events, TRAINING_LOSS, "loss_noise_std")
    population = session.get_one(Population, job.population_id)
    listed = artifact_list(session, job.id)
    progress = progress_of(session, job)
    maps = _maps(found, history)
    drawn = {chart.key for chart in maps}
    return JobPage(
        job=job,
        has_ended=State(job.state) in TERMINAL,
        why=status_message(job.reason_code) or "",
        population=population,
        progress=progress,
        change=LossChange(before=held_out[0], after=held_out[-1]) if len(held_out) > 1 else None,
        facts=_facts(session, job),
        lines=_lines(
            plan_of(job)["steps_planned"],
            (held_out, training, found[NOISE].get("", [])),
            epsilon_points(session, job, progress),
            progress,
            history,
        ),
        maps=maps,
        missing=tuple(caption for name, caption, _ in MAPS if name not in drawn and training),
        events=tuple(events[:EVENTS_SHOWN]),
        label=_label(session, subject, job, population),
        files=tuple(
            FileLine(name=file["name"], size_bytes=file["bytes"], sha256=file["sha256"])
            for file in listed["data"]
        ),
        release=listed["release"]["state"],
    )


def _facts(session: Session, job: Job) -> tuple[Fact, ...]:
    plan, block = plan_of(job), amounts_of(session, [job.id])[job.id]["train"]
    audit = audits.summary_of(session, job.id)
    levels, note = plan["noise_levels"], plan["mode"].replace("_", " ")
    if "noise_schedule" in plan:
        levels = [part["level"] for part in plan["noise_schedule"]]
        note = f"{note}, a schedule of {len(levels)} levels"
    noise = levels[0] if len(levels) == 1 else f"{levels[0]} to {levels[-1]}"
    return (
        Fact(name="Noise multiplier", value=noise, note=note),
        Fact(
            name="Sampling probability",
            value=plan["sampling_probability"],
            note=f"{plan['batch_size_expected']} patients a step on average",
        ),
        Fact(
            name="Steps started",
            value=f"{block.steps_started} of at most {block.steps_max}",
            note=f"control window of {plan['steps_per_chunk']} steps",
        ),
        Fact(name="Controller", value=plan["controller_type"], note="sees released values only"),
        Fact(
            name="Adapter",
            value=f"LoRA, rank {plan['adapter']['r']}",
            note=f"on {job.model}",
        ),
        Fact(name="Attempt", value=str(job.attempt), note=f"epoch {job.epoch}"),
        Fact(name="Audit", value=audits.headline(audit), note=audits.limits(audit)),
    )


def _lines(
    steps: int,
    released: tuple[Sequence[Point], Sequence[Point], Sequence[Point]],
    epsilon: Sequence[Point],
    progress: Progress,
    history: History,
) -> tuple[LineChart, ...]:
    held_out, training, noise = released
    cap = float(progress.epsilon_target), f"promised ε {progress.epsilon_target}"
    said = (
        f"of the promised ε {progress.epsilon_target} at δ {progress.delta}, one "
        f"{progress.unit} added or removed; a report, not a guarantee"
    )
    draw = partial(line_chart, steps_max=steps, history=history)
    charts = (
        draw("held-out", "Held-out loss, noised", held_out, unit="in nats a token"),
        draw("training", "Training loss, clipped and noised", training, unit="in nats"),
        draw("epsilon", "ε so far against its cap", epsilon, unit=said, cap=cap),
        draw(
            "noise",
            "Noise multiplier σ",
            noise,
            unit="in clip norms of the whole step",
            is_stepped=True,
        ),
    )
    return tuple(chart for chart in charts if chart is not None)


def _maps(
    found: Mapping[str, Mapping[str, Sequence[Point]]], history: History
) -> tuple[HeatMap, ...]:
    maps = []
    for name, caption, is_log in MAPS:
        named = [(_group_name(group), points) for group, points in found[name].items() if group]
        maps.append(heat_map(name, caption, named, is_log=is_log, history=history))
    return tuple(chart for chart in maps if chart is not None)


def _group_name(group: str) -> str:
    """`0.attn.c_attn.A` for `base_model.model.transformer.h.0.attn.c_attn.A`."""
    _, found, tail = group.partition(".h.")
    return tail if found else group[-22:]


def _label(session: Session, subject: Subject, job: Job, population: Population) -> Label | None:
    try:
        certificate = visible_certificate(session, subject.tenant_id, job.id)
    except LedgerNotFound:
        return None
    predicate = json.loads(certificate.body)["predicate"]
    return Label(
        facts=label_facts(predicate),
        verdict=certificate.verdict,
        digest=certificate.digest,
        has_page=subject.role != "admin",
    )

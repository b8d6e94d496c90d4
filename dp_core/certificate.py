"""dp_core's part of a job's privacy certificate: what was promised and how it was kept (A14).

Torch-free and canonical: text and integers only, so that the same facts give the same
bytes. The service adds scope, evidence and verdict from its ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dp_core.events import canonical_digest
from dp_core.plan import RunPlan
from dp_core.telemetry import ReleasedValue


def job_claim(
    plan: RunPlan,
    *,
    steps_started: int,
    steps_finished: int,
    outcome: str,
    layout_digest: str,
    groups: int,
    noise_source: str,
    policy: str,
    policy_digest: str,
    second_opinion: str | None,
    versions: Mapping[str, str],
    validation_before: ReleasedValue | None,
    validation_after: ReleasedValue | None,
) -> dict[str, Any]:
    """The claim as canonical values. Every epsilon stands beside its delta, unit and rule."""
    return {
        "claim": _claim(plan),
        "controller": {
            "inputs": "released and public values only",
            "policy": policy,
            "policy_digest": policy_digest,
            "type": plan.controller_type,
        },
        "indicative": {
            "note": "as if the noise had been fixed beforehand; can understate by several per "
            "cent; not a guarantee",
            "prv_epsilon_upper": second_opinion,
        },
        "limits": [
            _rounding(plan),
            "timing, memory and power are not covered",
            "the number of patients beyond the declared one is not covered",
        ],
        "mechanism": _mechanism(plan, layout_digest, groups, noise_source),
        "steps": {
            "finished": steps_finished,
            "outcome": outcome,
            "planned": plan.steps_planned,
            "started": steps_started,
            "started_max": plan.steps_started_max,
        },
        "utility": {
            "hold_out_after": _released(validation_after),
            "hold_out_before": _released(validation_before),
            "source": "noised, clipped loss of the validation block, charged there",
        },
        "versions": dict(sorted(versions.items())),
    }


def _rounding(plan: RunPlan) -> str:
    """What remains of floating point in the release (privacy.md G12)."""
    if plan.sum_dtype == "integer_grid":
        return (
            "training sums and noise are whole numbers of a public grid; the hold-out loss "
            "keeps the rounding of a float sum (privacy.md G12)"
        )
    return (
        f"{plan.sum_dtype} summation and rounding are bounded by inflated clips and stds, "
        "not removed (privacy.md G12)"
    )


def _claim(plan: RunPlan) -> dict[str, Any]:
    fixed = plan.mode == "fixed_sigma"
    return {
        "alpha_job": plan.alpha_job,
        "delta": plan.delta,
        "epsilon": plan.epsilon_certified,
        "guarantee": True,
        "mode": plan.mode,
        "plan_digest": plan.digest(),
        "relation": plan.relation,
        "rule": "pld_fixed_schedule" if fixed else "rdp_filter",
        "schedule_digest": canonical_digest(plan.worst_schedule.to_list()) if fixed else None,
        "unit": plan.unit,
        "validation_block_epsilon": plan.validation_epsilon,
    }


def _mechanism(plan: RunPlan, layout_digest: str, groups: int, noise_source: str) -> dict[str, Any]:
    document: dict[str, Any] = {
        "clipping": plan.clipping.rule,
        "clip_factor": plan.clipping.factor,
        "grouping": plan.clipping.grouping,
        "groups": groups,
        "layout_digest": layout_digest,
        "noise_levels": list(plan.noise_levels),
        "noise_source": noise_source,
        "released_components": ["noised_gradients", "clip_bits", "clipped_loss"],
        "sampler": plan.sampler,
        "sampling_probability": plan.sampling_probability,
        "sensitivity": "one patient moves the joint release by at most 1/noise level of its "
        "standard deviations (L2)",
        "sum_dtype": plan.sum_dtype,
        "telemetry_share": plan.telemetry.share,
    }
    if plan.noise_schedule is not None:
        document["noise_schedule"] = plan.noise_schedule.to_list()
    return document


def _released(value: ReleasedValue | None) -> dict[str, str] | None:
    if value is None:
        return None
    return {"nats_per_token": f"{value.value:.4f}", "noise_std": f"{value.std:.4f}"}

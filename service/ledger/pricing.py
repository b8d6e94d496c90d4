"""Prices of a plan in the population's currency, and what its entry must say about them.

Pure functions of public values; the planner's estimate and the reservation use the same
ones, so that an estimate equals the reservation to the pico.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from dp_core.accounting import ORDER_MAX, ORDER_MIN, charge_pico, step_pico, total_pico
from dp_core.plan import RunPlan
from service.ledger.errors import ReservationMismatch


@dataclass(frozen=True, kw_only=True)
class BlockReserve:
    """What a job may at most do in one block, and its worst case there."""

    block: str
    q: str
    levels: tuple[str, ...]
    steps_max: int
    amount_pico: int


def block_reserves(plan: RunPlan, alpha_star: int) -> list[BlockReserve]:
    """Worst case of each block at the population's order.

    Training: the registered schedule in fixed mode, all steps at the costliest level else.
    """
    reserves = [
        BlockReserve(
            block="train",
            q=plan.sampling_probability,
            levels=plan.noise_levels,
            steps_max=plan.steps_started_max,
            amount_pico=total_pico(plan.training_events(), alpha_star),
        )
    ]
    held_out = plan.validation
    if held_out is not None:
        reserves.append(
            BlockReserve(
                block="validation",
                q=held_out.sampling_probability,
                levels=(held_out.noise_multiplier,),
                steps_max=held_out.evaluations_max,
                amount_pico=charge_pico(held_out.event(), alpha_star),
            )
        )
    return reserves


def price_of_step(q: str, level: str, alpha: int) -> int:
    """Price of one step at a rate, level and order, in pico."""
    return step_pico(q, level, alpha)


def job_step_price(plan: RunPlan, level: str) -> int:
    """Price of one step against the job's own limit: 1 step, or pico at `alpha_job`."""
    if plan.mode == "fixed_sigma":
        return 1
    assert plan.alpha_job is not None
    return step_pico(plan.sampling_probability, level, plan.alpha_job)


def reserve_data(
    *, job_id: str, plan: RunPlan, digest: str, alpha_star: int, blocks: Sequence[BlockReserve]
) -> dict[str, Any]:
    """The `data` of a `reserve` entry: everything needed to recompute every later charge."""
    fixed = plan.mode == "fixed_sigma"
    return {
        "adapter": {
            "alpha": plan.adapter.alpha,
            "r": plan.adapter.r,
            "target_modules": list(plan.adapter.target_modules),
        },
        "alpha_job": plan.alpha_job,
        "alpha_star": alpha_star,
        "base_model": plan.base_model_digest,
        "blocks": [_block_data(plan, block, alpha_star) for block in blocks],
        "controller": plan.controller_type,
        "dataset_version": plan.dataset_version,
        "delta": plan.delta,
        "epsilon": plan.epsilon_certified,
        "job": job_id,
        "job_limit": str(plan.job_limit),
        "noise_source": plan.noise_source,
        "other_uses": {
            "controller_inputs": "charged",
            "pre_processing": "not used",
            "tuning": "not used",
            "validation": "charged" if plan.validation else "not used",
        },
        "patients_public": plan.patients_public,
        "plan": digest,
        "relation": plan.relation,
        "rule": "pld_fixed_schedule" if fixed else "rdp_filter",
        "sampler": plan.sampler,
        "schedule": plan.worst_schedule.to_list() if fixed else None,
        "signals": ["clip_bits", "clipped_loss"],
        "steps_max": plan.steps_planned,
        "steps_per_window_max": plan.steps_per_chunk,
        "steps_started_max": plan.steps_started_max,
        "unit": plan.unit,
    }


def _block_data(plan: RunPlan, block: BlockReserve, alpha_star: int) -> dict[str, Any]:
    return {
        "amount": str(block.amount_pico),
        "block": block.block,
        "levels": [_level_data(plan, block, level, alpha_star) for level in block.levels],
        "q": block.q,
        "steps_max": block.steps_max,
    }


def _level_data(plan: RunPlan, block: BlockReserve, level: str, alpha_star: int) -> dict[str, Any]:
    own = str(job_step_price(plan, level)) if block.block == "train" else None
    orders = range(ORDER_MIN, ORDER_MAX + 1)
    return {
        "job_step_price": own,
        "level": level,
        "prices": [str(step_pico(block.q, level, order)) for order in orders],
        "step_pico": str(step_pico(block.q, level, alpha_star)),
    }


def check_blocks(plan: RunPlan, alpha_star: int, blocks: Sequence[BlockReserve]) -> None:
    """Refuses a reservation that is not exactly the plan's worst case.

    Raises:
        ReservationMismatch: it differs.
    """
    if list(blocks) != block_reserves(plan, alpha_star):
        raise ReservationMismatch("blocks", "not the plan's worst case at the population's order")


def effective_noise_multiplier_holds(settings: Mapping[str, Any], level: str) -> bool:
    """Whether 1/sigma^2 = sum (bound/std)^2 gives sigma >= level, in exact fractions."""
    total = Fraction(0)
    for component in (*settings["groups"], *settings["signals"]):
        total += (Fraction(component["bound"]) / Fraction(component["std"])) ** 2
    return total * Fraction(level) ** 2 <= 1


def levels_of(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))

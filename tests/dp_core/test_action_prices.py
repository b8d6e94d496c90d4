"""ACTION: what is recorded for an action never undercuts what it costs (G2, G5, M3, M25, M28).

The oracle shares no code with `dp_core`: sigma from the journal's components in 60-digit
decimals, the price by the plain binomial sum in mpmath, itself checked by quadrature.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal, localcontext

import mpmath
import numpy as np
import pytest

from dp_core.accounting import step_pico
from dp_core.mechanism import GroupLayout, StepSettings, admit
from dp_core.plan import ClippingPlan, RunPlan, TelemetryPlan
from dp_core.ports import GroupActions
from tests.dp_core.conftest import make_plan

FIXED = make_plan()
MENU = make_plan(mode="adaptive_sigma", steps_max=40, patients_public=1000)
CLIPPING = (
    ClippingPlan(),
    ClippingPlan(allocation="equal_budget", clip_octaves="6", share_tilt="4"),
    ClippingPlan(allocation="equal_noise", rule="whitened", clip_min="1e-6", clip_max="1000"),
)
TELEMETRY = (TelemetryPlan(), TelemetryPlan(share="0.3", bits_fraction="0.2", loss_cap="11"))
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 1e308, 5e-324])


def random_settings(rng: np.random.Generator) -> tuple[RunPlan, StepSettings]:
    """One random plan, layout and action; a third of the inputs are special values."""
    count = int(np.exp(rng.uniform(0, np.log(512.999))))
    plan = replace(
        MENU if rng.random() < 0.5 else FIXED,
        clipping=CLIPPING[rng.integers(len(CLIPPING))],
        telemetry=TELEMETRY[rng.integers(len(TELEMETRY))],
    )
    sizes = np.exp(rng.uniform(0, np.log(1e7), count)).astype(int)
    layout = GroupLayout(ids=tuple(f"{k:03d}" for k in range(count)), sizes=tuple(sizes.tolist()))
    low, high = float(plan.clipping.clip_min), float(plan.clipping.clip_max)
    references = np.exp(rng.uniform(np.log(low), np.log(high), count))
    inputs = rng.normal(0, 2, (3, count))
    special = rng.random((3, count)) < 1 / 3
    inputs[special] = rng.choice(SPECIAL, int(special.sum()))
    clip, share, rate = (tuple(row.tolist()) for row in inputs)
    level = float(rng.choice(SPECIAL)) if rng.random() < 0.2 else float(rng.normal())
    action = GroupActions(clip=clip, share=share, rate=rate, level=level)
    return plan, admit(plan, layout, references.tolist(), action)


def true_multiplier(settings: StepSettings) -> Decimal:
    """(sum (bound/std)^2)^(-1/2) of the journal's own decimal strings."""
    with localcontext() as context:
        context.prec = 60
        total = sum(
            ((Decimal(c.sensitivity) / Decimal(c.std)) ** 2 for c in settings.components()),
            Decimal(0),
        )
        return 1 / total.sqrt()


def true_rdp(q: str, sigma: Decimal, alpha: int) -> mpmath.mpf:
    """Renyi divergence by the plain binomial sum from j = 0, 70 digits."""
    with mpmath.workdps(70):
        rate, twice = mpmath.mpf(q), 2 * mpmath.mpf(str(sigma)) ** 2
        total = mpmath.fsum(
            mpmath.binomial(alpha, j)
            * (1 - rate) ** (alpha - j)
            * rate**j
            * mpmath.exp(mpmath.mpf(j * (j - 1)) / twice)
            for j in range(alpha + 1)
        )
        return mpmath.log(total) / (alpha - 1)


def test_the_oracle_is_the_integral_it_stands_for() -> None:
    for q, sigma, alpha in (("0.1", "0.8", 4), ("0.02", "1.3", 9)):
        with mpmath.workdps(30):
            s, rate = mpmath.mpf(sigma), mpmath.mpf(q)

            def density(x: mpmath.mpf, s: mpmath.mpf = s) -> mpmath.mpf:
                return mpmath.npdf(x, 0, s)

            def ratio(x: mpmath.mpf, s: mpmath.mpf = s, q: mpmath.mpf = rate) -> mpmath.mpf:
                return 1 - q + q * mpmath.exp((2 * x - 1) / (2 * s**2))

            moment = mpmath.quad(
                lambda x, a=alpha, d=density, r=ratio: d(x) * r(x) ** a, range(-12, 25, 2)
            )
            expected = mpmath.log(moment) / (alpha - 1)
        assert abs(true_rdp(q, Decimal(sigma), alpha) / expected - 1) < 1e-20


def check_prices(seed: int, actions: int) -> None:
    rng = np.random.default_rng(seed)
    recorded, spent = 0, mpmath.mpf(0)
    for _ in range(actions):
        plan, settings = random_settings(rng)
        alpha, steps = int(rng.choice([2, 3, 4, 6, 8, 16])), int(rng.integers(1, 501))
        price = step_pico(plan.sampling_probability, settings.noise_multiplier, alpha)
        cost = true_rdp(plan.sampling_probability, true_multiplier(settings), alpha)
        assert cost * 10**12 <= price
        assert cost * 10**12 >= price * (1 - 1e-3) - 1, "and it is no gross over-charge"
        recorded, spent = recorded + steps * price, spent + steps * cost  # a schedule grows
        assert spent * 10**12 <= recorded


def test_recorded_cost_covers_true_cost_of_500_actions_and_their_schedules() -> None:
    check_prices(seed=1, actions=500)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_recorded_cost_covers_true_cost_of_10000_actions_and_their_schedules() -> None:
    check_prices(seed=2, actions=10_000)


def check_g5(seed: int, actions: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(actions):
        plan, settings = random_settings(rng)
        level = float(settings.noise_multiplier)
        assert settings.noise_multiplier in plan.noise_levels
        inverse = np.sum((np.array(settings.sensitivities) / np.array(settings.stds)) ** 2)
        assert level <= 1 / np.sqrt(inverse) <= level * (1 + 2e-6)
        clips = np.array(settings.clip_norms)
        assert np.all(np.float32(clips) == clips) and np.all(np.isfinite(settings.noise_stds))


def test_5000_generated_actions_keep_their_level() -> None:
    check_g5(seed=3, actions=5_000)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_100000_generated_actions_keep_their_level() -> None:
    check_g5(seed=4, actions=100_000)

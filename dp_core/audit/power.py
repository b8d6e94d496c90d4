"""What a one-run audit could have seen: the leak it finds 95 times in 100."""

from __future__ import annotations

import numpy as np

from dp_core.audit.bounds import Guesses, fdp_rejects, gaussian_epsilon, steinke_p_value
from dp_core.audit.coins import Manifest
from dp_core.audit.curve import TradeOffCurve

_RUNS = 400
_MU_MAX = 16.0
_PUBLIC_SEED = 20230508  # of the simulation: the same figure for the same manifest


def gate_refutes(curve: TradeOffCurve, guesses: Guesses, *, delta: float, level: float) -> bool:
    """Whether one run contradicts the ledger's curve at the gate's `level` (audit.md 7).

    Steinke's test at the curve's epsilon for `delta`, or the f-DP test with the curve.
    """
    claim = curve.epsilon_at(delta)
    if np.isfinite(claim) and steinke_p_value(claim, guesses, delta) <= level:
        return True
    return fdp_rejects(curve.inverse, guesses, level)


def correct_needed(manifest: Manifest, curve: TradeOffCurve) -> int | None:
    """The fewest right guesses that contradict the ledger; None if not even all of them do."""
    made = manifest.k_plus + manifest.k_minus
    delta, level = float(manifest.delta_audit), float(manifest.alpha_gate)

    def refutes(correct: int) -> bool:
        guesses = Guesses(canaries=manifest.m, made=made, correct=correct)
        return gate_refutes(curve, guesses, delta=delta, level=level)

    if not refutes(made):
        return None
    low, high = -1, made
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if refutes(middle) else (middle, high)
    return high


def min_detectable_epsilon(manifest: Manifest, curve: TradeOffCurve, delta: float) -> float | None:
    """The smallest true epsilon that the gate contradicts with 95 % probability; else None.

    For a leak that gives Gaussian scores; 400 simulated audits with a public seed.
    """
    needed = correct_needed(manifest, curve)
    if needed is None:
        return None
    generator = np.random.default_rng(_PUBLIC_SEED)
    coins = generator.random((_RUNS, manifest.m)) < 0.5
    noise = generator.standard_normal((_RUNS, manifest.m))

    def is_found(mu: float) -> bool:
        order = np.argsort(noise + mu * coins, axis=1)
        guessed_in = np.take_along_axis(coins, order[:, -manifest.k_plus :], axis=1)
        guessed_out = np.take_along_axis(coins, order[:, : manifest.k_minus], axis=1)
        correct = guessed_in.sum(axis=1) + (~guessed_out).sum(axis=1)
        return bool((correct >= needed).mean() >= 0.95)

    if not is_found(_MU_MAX):
        return None
    low, high = 0.0, _MU_MAX
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if is_found(middle) else (middle, high)
    return gaussian_epsilon(high, delta)

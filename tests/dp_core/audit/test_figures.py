"""From scores to figures, and an outsider's recomputation (AU12, AU28, AU38, M32)."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dp_core.audit.coins import Manifest, new_manifest
from dp_core.audit.curve import TradeOffCurve, fixed_schedule_curve, gaussian_curve
from dp_core.audit.errors import AuditInvalid
from dp_core.audit.figures import (
    exposure_figures,
    one_run_differences,
    one_run_figures,
    roc_figures,
)
from dp_core.audit.power import min_detectable_epsilon
from dp_core.audit.report import AuditReport
from dp_core.events import PoissonGaussian
from tests.dp_core.audit.test_report import COINS, CURVE, GOOD, MANIFEST, ideal_scores, with_part
from tests.dp_core.audit.toy import RATE, SIGMA_OF_EPSILON, run_toy


class TestGateOnCorrectMechanisms:
    """AU38: ideal scores at exactly the claimed epsilon never fail the gate."""

    @pytest.mark.parametrize("canaries", [100, 1000, 2000])
    @pytest.mark.parametrize("mu", [0.142, 0.502, 0.925, 1.666])
    def test_no_correct_run_is_refuted(self, mu: float, canaries: int) -> None:
        """17 runs each, 204 in all, at level 1e-3 each with much to spare."""
        curve, generator = gaussian_curve(mu), np.random.default_rng(canaries)
        manifest = new_manifest(
            kind="gradient",
            canaries=canaries,
            layout_digest="0" * 64,
            steps_planned=1,
            score="x",
        )
        for _ in range(17):
            coins = generator.random(canaries) < 0.5
            scores = generator.standard_normal(canaries) + mu * coins
            figures = one_run_figures(manifest, scores, coins, curve, "1e-5")
            assert figures.p_steinke_at_ledger > 1e-3
            assert not figures.fdp_rejects

    @pytest.mark.slow
    @pytest.mark.timeout(3600)
    @pytest.mark.parametrize("epsilon", SIGMA_OF_EPSILON)
    def test_no_correct_toy_run_is_refuted_with_the_ledgers_curve(self, epsilon: int) -> None:
        """White-box scores of whole jobs against the privacy loss of their own schedule."""
        sigma, steps = SIGMA_OF_EPSILON[epsilon], 400
        curve = fixed_schedule_curve([PoissonGaussian(q=RATE, noise_multiplier=sigma, steps=steps)])
        for seed in range(12):
            run = run_toy(sigma=sigma, steps=steps, canaries=1000, groups=2, size=1000, seed=seed)
            figures = one_run_figures(MANIFEST, run.scores, run.is_member, curve, "1e-5")
            roc = roc_figures(run.scores, run.is_member, curve)
            assert figures.p_steinke_at_ledger > 1e-3
            assert not figures.fdp_rejects
            assert roc.low_999 <= roc.ledger_max_auc


class TestDifferences:
    SCORES = ideal_scores(0.925)
    LEAST = min_detectable_epsilon(MANIFEST, CURVE, 1e-5)

    def check(self, given: AuditReport, manifest: Manifest = MANIFEST) -> tuple[str, ...]:
        power = dataclasses.replace(given.power, min_detectable_epsilon_95=self.LEAST)
        given = dataclasses.replace(given, power=power)
        return one_run_differences(given, manifest, self.SCORES, CURVE)

    def test_an_outsider_recomputes_every_figure(self) -> None:
        assert self.check(GOOD) == ()

    @pytest.mark.parametrize(
        ("changed", "named"),
        [
            (with_part("one_run", v=150), "one-run"),
            (with_part("roc", auc=0.5), "attack"),
            (dataclasses.replace(GOOD, roc=None), "attack"),
            (with_part("guess_rule", k_plus=99), "guess rule"),
            (with_part("canary", n_included=1), "number of canaries"),
            (with_part("canary", revealed_seed="00" * 32), "commitment"),
            (with_part("canary", revealed_seed=None), "not revealed"),
        ],
    )
    def test_what_was_changed_is_named(self, changed: AuditReport, named: str) -> None:
        (found,) = self.check(changed)
        assert named in found

    def test_a_power_that_the_audit_did_not_have_is_named(self) -> None:
        found = one_run_differences(GOOD, MANIFEST, self.SCORES, CURVE)
        assert found == ("what the audit could have detected",)

    def test_a_manifest_written_afterwards_opens_nothing(self) -> None:
        """M32: another number of guesses cannot be chosen once the coins are known."""
        later = dataclasses.replace(MANIFEST, score="plain_sum")
        assert "commitment" in self.check(GOOD, later)[0]


class TestExposureFigures:
    def test_summarises_the_included_canaries(self) -> None:
        found = exposure_figures(np.arange(1000.0) * COINS, COINS)
        assert found.reference_size == int((~COINS).sum())
        assert found.max == pytest.approx(np.log2(found.reference_size))
        assert found.median <= found.p95 <= found.max


def test_figures_need_members_and_outsiders() -> None:
    with pytest.raises(AuditInvalid, match="coins"):
        roc_figures(np.zeros(4), np.ones(4, bool), CURVE)


def test_a_curve_without_finite_claim_leaves_the_test_to_f_dp() -> None:
    curve = TradeOffCurve(epsilons=np.array([0.0]), deltas=np.array([0.9]))
    figures = one_run_figures(MANIFEST, ideal_scores(3.0), COINS, curve, "1e-5")
    assert figures.p_steinke_at_ledger == 1.0

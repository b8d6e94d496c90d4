"""What a one-run audit could have found."""

from __future__ import annotations

from dp_core.audit.curve import gaussian_curve
from dp_core.audit.figures import one_run_figures
from dp_core.audit.power import correct_needed, min_detectable_epsilon
from tests.dp_core.audit.test_report import COINS, CURVE, MANIFEST, ideal_scores


class TestPower:
    def test_fewest_right_guesses_that_refute_the_ledger(self) -> None:
        needed = correct_needed(MANIFEST, CURVE)
        assert needed is not None
        scores = ideal_scores(3.5)
        assert one_run_figures(MANIFEST, scores, COINS, CURVE, "1e-5").v >= needed

    def test_detectable_leak_lies_above_the_claim(self) -> None:
        found = min_detectable_epsilon(MANIFEST, CURVE, 1e-5)
        assert found is not None
        assert 4 < found < 40
        assert found == min_detectable_epsilon(MANIFEST, CURVE, 1e-5)

    def test_a_claim_no_run_can_refute_gives_no_number(self) -> None:
        assert min_detectable_epsilon(MANIFEST, gaussian_curve(8.0), 1e-5) is None

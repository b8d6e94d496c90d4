"""Verdict, fields and words of a report (AU12, AU29-AU36)."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from dp_core.audit.canaries import MembershipScores
from dp_core.audit.coins import CoinSeed, new_manifest
from dp_core.audit.curve import gaussian_curve
from dp_core.audit.figures import (
    one_run_figures,
    roc_figures,
)
from dp_core.audit.report import (
    CORRECT_ENGINE,
    REQUIRED_CONTROLS,
    AuditReport,
    CanaryFacts,
    Circumstances,
    Cost,
    ExposureFigures,
    GuessRule,
    LedgerFacts,
    PositiveControl,
    Power,
    SelfTestFigures,
    conclude,
    decide,
    statements,
)
from tests.dp_core.audit.test_selftest import look, result

MANIFEST = new_manifest(
    kind="gradient",
    canaries=1000,
    layout_digest="0" * 64,
    steps_planned=40,
    score=MembershipScores.name,
)
SEED = CoinSeed(b"\x07" * 32)
COINS = SEED.coins(1000)
CURVE = gaussian_curve(0.925)  # epsilon 4 at delta 1e-5


def ideal_scores(mu: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(1000) + mu * COINS


def controls(p: float = 1e-30, *, without: str = "") -> tuple[PositiveControl, ...]:
    return tuple(PositiveControl(name=n, min_p=p) for n in REQUIRED_CONTROLS if n != without)


def report(mu: float = 0.925, **changes: Any) -> AuditReport:
    """A report of a correct job; any field can be changed."""
    scores = ideal_scores(mu)
    fields: dict[str, Any] = {
        "job_id": "job_1",
        "image_digest": "sha256:0",
        "code_commit": "0" * 40,
        "tier": "T2",
        "ledger": LedgerFacts(
            epsilon="4.0000",
            delta="1e-5",
            mode="fixed_sigma",
            alpha_star=None,
            unit="patient",
            relation="add_remove",
            steps_started=40,
            q="0.0256",
            head="0" * 64,
        ),
        "canary": CanaryFacts(
            kind="gradient",
            m=1000,
            n_included=int(COINS.sum()),
            manifest_sha256=MANIFEST.digest(),
            commitment=SEED.commitment(MANIFEST.digest()),
            revealed_seed=SEED.reveal(),
        ),
        "guess_rule": GuessRule(
            k_plus=100, k_minus=100, score=MANIFEST.score, preregistered_at="entry 12"
        ),
        "one_run": one_run_figures(MANIFEST, scores, COINS, CURVE, "1e-5"),
        "roc": roc_figures(scores, COINS, CURVE),
        "exposure": None,
        "selftest": SelfTestFigures.of(result(steps=40)),
        "power": Power(min_detectable_epsilon_95=None, positive_controls=controls()),
        "circumstances": Circumstances(tiers_run=("T0", "T1", "T2")),
        "cost": Cost(seconds=60, memory_bytes=10**6),
    }
    return AuditReport(**(fields | changes))


GOOD = report()


def with_part(part: str, **changes: Any) -> AuditReport:
    return dataclasses.replace(GOOD, **{part: dataclasses.replace(getattr(GOOD, part), **changes)})


FAILING = {
    "self-test": dataclasses.replace(
        GOOD, selftest=SelfTestFigures.of(result(looks=(look(1e-9),)))
    ),
    "Steinke": with_part("one_run", p_steinke_at_ledger=1e-3),
    "f-DP": with_part("one_run", fdp_rejects=True),
    "commitment": with_part("canary", revealed_seed="00" * 32),
    "charged": with_part("selftest", steps=41),
    "replay": with_part("circumstances", journal_differences=("replay of step 3",)),
}
INCONCLUSIVE = {
    "T1 was not run": with_part("circumstances", tiers_run=("T2",)),
    "T2 was not run": with_part("circumstances", tiers_run=("T1",)),
    "500 gradient": with_part("canary", m=499),
    "one_group_unclipped": with_part(
        "power", positive_controls=controls(without="one_group_unclipped")
    ),
    "noise_off": with_part("power", positive_controls=controls(1e-8)),
    "rang on the engine without a fault": with_part(
        "power",
        positive_controls=(*controls(), PositiveControl(name=CORRECT_ENGINE, min_p=1e-7)),
    ),
    "ceiling": with_part("roc", auc=0.9, ci95=(0.88, 0.92)),
    "shadow": with_part("circumstances", is_shadow=True),
    "no self-test": dataclasses.replace(GOOD, selftest=None),
    "no one-run": dataclasses.replace(GOOD, one_run=None),
    "not revealed": with_part("canary", revealed_seed=None),
    "never saw": dataclasses.replace(GOOD, selftest=SelfTestFigures.of(result(mean_ratio=(None,)))),
}


class TestDecide:
    def test_a_correct_job_passes(self) -> None:
        assert decide(GOOD) == ("PASS", ())

    @pytest.mark.parametrize("reason", FAILING)
    def test_each_row_of_the_fail_rule(self, reason: str) -> None:
        verdict, reasons = decide(FAILING[reason])
        assert verdict == "FAIL"
        assert reason in reasons[0]

    @pytest.mark.parametrize("reason", INCONCLUSIVE)
    def test_each_row_of_the_inconclusive_rule(self, reason: str) -> None:
        verdict, reasons = decide(INCONCLUSIVE[reason])
        assert verdict == "INCONCLUSIVE"
        assert any(reason in text for text in reasons)

    def test_the_engine_without_a_fault_is_no_fault_that_was_caught(self) -> None:
        """However small its p: it is listed to forbid a PASS, never to support one."""
        silent = PositiveControl(name=CORRECT_ENGINE, min_p=0.3)
        assert decide(with_part("power", positive_controls=(*controls(), silent)))[0] == "PASS"
        assert not PositiveControl(name=CORRECT_ENGINE, min_p=0.0).has_tripped

    def test_a_failure_outweighs_a_gap(self) -> None:
        shadow = dataclasses.replace(
            FAILING["f-DP"], circumstances=Circumstances(tiers_run=(), is_shadow=True)
        )
        assert decide(shadow)[0] == "FAIL"

    def test_a_leak_beyond_the_claim_fails(self) -> None:
        """Scores of epsilon 16 (mu 2.95) against a ledger that says 4."""
        verdict, reasons = decide(report(mu=2.95))
        assert verdict == "FAIL"
        assert "refutes the ledger's curve" in " ".join(reasons)

    def test_auc_within_its_error_of_the_ceiling_is_no_gap(self) -> None:
        assert decide(with_part("roc", auc=0.78, ci95=(0.75, 0.81)))[0] == "PASS"

    def test_conclude_writes_what_decide_says(self) -> None:
        assert conclude(GOOD).verdict == "PASS"
        assert conclude(FAILING["replay"]).reasons == decide(FAILING["replay"])[1]
        assert decide(conclude(FAILING["replay"])) == decide(FAILING["replay"])


class TestForm:
    def test_is_json_with_the_fields_of_the_specification(self) -> None:
        document = json.loads(json.dumps(conclude(GOOD).to_dict()))
        named = (
            "job_id image_digest code_commit tier ledger canary guess_rule one_run roc "
            "exposure selftest power verdict reasons cost"
        )
        assert set(named.split()) <= set(document)
        assert set(document["one_run"]) >= {
            "r",
            "v",
            "eps_lb95_steinke",
            "eps_lb95_fdp",
            "p_steinke_at_ledger",
            "fdp_rejects_at_1e-3",
        }

    def test_what_does_not_exist_is_null(self) -> None:
        document = dataclasses.replace(GOOD, one_run=None, roc=None).to_dict()
        assert document["one_run"] is document["roc"] is document["exposure"] is None
        assert document["power"]["min_detectable_epsilon_95"] is None

    def test_an_infinite_figure_is_refused(self) -> None:
        with pytest.raises(ValueError, match="JSON"):
            with_part("roc", auc=float("nan")).to_dict()

    def test_every_figure_is_under_the_digest(self) -> None:
        digest = conclude(GOOD).digest()
        assert digest == conclude(report()).digest()
        assert digest != conclude(with_part("roc", auc=GOOD.roc.auc + 1e-9)).digest()  # type: ignore[union-attr]
        assert digest != conclude(FAILING["replay"]).digest()


class TestWords:
    def all_texts(self) -> list[str]:
        exposure = ExposureFigures(median=1.0, p95=3.0, max=5.0, reference_size=500)
        cases = [GOOD, *FAILING.values(), *INCONCLUSIVE.values()]
        return [
            text for c in cases for text in statements(dataclasses.replace(c, exposure=exposure))
        ]

    def test_a_pass_says_what_it_is_worth(self) -> None:
        assert statements(GOOD)[0] == (
            "No evidence against epsilon <= 4.0000 at delta = 1e-5 per patient. This audit would "
            "have caught noise off, noise halved, sigma times clip, one group unclipped with "
            "95 % probability."
        )

    def test_no_text_claims_more_than_an_audit_shows(self) -> None:
        texts = " ".join(self.all_texts()).lower()
        for word in ("verified", "measured", "certified", "attack-proof", "proves", "guarantee"):
            assert word not in texts

    def test_a_bound_stands_with_confidence_method_m_and_its_ceiling(self) -> None:
        bounds = [t for t in statements(GOOD) if t.startswith("Lower bound on epsilon")]
        assert len(bounds) == 2
        for text in bounds:
            for part in ("95 % confidence", "one-run", "m = 1000", "could have shown"):
                assert part in text

    def test_attack_figures_come_with_their_ceiling_and_what_chance_means(self) -> None:
        (auc,) = [t for t in statements(GOOD) if "AUC" in t]
        assert "allows at most 0.74" in auc
        assert "no evidence of a correct implementation" in auc
        assert "0.05" in auc

    def test_absent_figures_are_not_mentioned(self) -> None:
        bare = dataclasses.replace(GOOD, one_run=None, roc=None)
        assert len(statements(bare)) == 1

    def test_failure_and_gap_are_named(self) -> None:
        assert statements(FAILING["replay"])[0].startswith("The audit contradicts epsilon <= 4")
        assert "allows no conclusion" in statements(INCONCLUSIVE["shadow"])[0]

"""The pre-flight on the packaged model: silent when right, loud on every planted fault.

Every case runs the job's own engine and optimiser for five steps on random tokens.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import numpy as np
import pytest
import torch

from controller.baselines.broken import ARM as BROKEN
from dp_core.audit.errors import AuditInvalid
from dp_core.audit.preflight import Preflight, Tamper, run_preflight, steps_of
from dp_core.audit.report import REQUIRED_CONTROLS, conclude
from dp_core.audit.saved import SavedAudit, differences
from dp_core.audit.selftest import ALARM_LEVEL
from dp_core.base_model import load_base
from dp_core.lora import attach_adapters
from dp_core.mechanism import StepSettings, up32
from dp_core.noise import NoiseSource, OsEntropySource, SeededSource
from dp_core.noise_schedule import NoiseShape
from dp_core.plan import AdapterPlan, ClippingPlan, Performance, RunPlan
from dp_core.replica import Replica
from service.demo import models
from tests.dp_core.conftest import make_plan

PERFORMANCE = Performance(patients_per_microbatch=4)
ADAPTER = AdapterPlan(r=4, alpha=8)


def audit_plan(**changes: Any) -> RunPlan:
    fields = {"validation_fraction": "0", "adapter": ADAPTER, "steps_max": 40}
    sum_dtype = changes.pop("sum_dtype", "float32")
    return dataclasses.replace(make_plan(**(fields | changes)), sum_dtype=sum_dtype)


@pytest.fixture(scope="module")
def model() -> Any:
    base, _ = load_base(models.path(), PERFORMANCE)
    return attach_adapters(base, ADAPTER, seed=3)


def preflight(
    model: Any,
    plan: RunPlan | None = None,
    *,
    noise: NoiseSource | None = None,
    tamper: Tamper | None = None,
    make_replica: Any = Replica,
) -> Preflight:
    return run_preflight(
        plan=plan or audit_plan(),
        model=model,
        vocabulary=model.config.vocab_size,
        performance=PERFORMANCE,
        noise_source=noise or OsEntropySource(),
        job_id="ftjob-test",
        make_replica=make_replica,
        tamper=tamper,
    )


@pytest.fixture(scope="module")
def correct(model: Any) -> Preflight:
    return preflight(model)


class NoNoise(SeededSource):
    def _gaussian(self, length: int) -> torch.Tensor:
        return torch.zeros(length)


class HalvedNoise(SeededSource):
    def _gaussian(self, length: int) -> torch.Tensor:
        return super()._gaussian(length) / 2


def sigma_times_clip(settings: StepSettings) -> StepSettings:
    sigma = float(settings.noise_multiplier)
    stds = tuple(up32(sigma * clip) for clip in settings.clip_norms)
    return dataclasses.replace(settings, noise_stds=stds)


def one_group_unclipped(settings: StepSettings) -> StepSettings:
    return dataclasses.replace(settings, clip_norms=(1e6, *settings.clip_norms[1:]))


class TestCorrectEngine:
    """False alarm 1e-6 a run."""

    def test_the_self_test_passes_and_the_audit_as_a_whole_stays_inconclusive(
        self, correct: Preflight
    ) -> None:
        assert correct.result.reasons == ()
        assert correct.result.verdict == "PASS"
        report = correct.saved.report
        assert (report.verdict, report.tier) == ("INCONCLUSIVE", "T1")
        assert "T2 was not run" in report.reasons
        assert {f"control {c} was not run" for c in REQUIRED_CONTROLS} <= set(report.reasons)

    def test_five_steps_see_canaries_in_every_group(self, correct: Preflight) -> None:
        """About 500 members at q .02: 50 sampled in five steps, mean over groups off by .2."""
        ratios = [r for r in correct.result.mean_ratio if r is not None]
        assert len(ratios) == len(correct.saved.layout)
        assert [look.step for look in correct.result.looks] == [1, 2, 5]
        assert np.mean([v for v in correct.result.var_ratio if v is not None]) == pytest.approx(
            1, abs=0.05
        )

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"clipping": ClippingPlan(grouping="pair")}, id="pair"),
            pytest.param({"clipping": ClippingPlan(rule="whitened")}, id="whitened"),
            pytest.param({"mode": "adaptive_sigma", "sum_dtype": "integer_grid"}, id="grid"),
            pytest.param(
                {"noise_shape": NoiseShape(factors=("1", "0.8", "0.6"))},
                id="schedule",
                marks=pytest.mark.ci,  # calibrating a schedule takes ten seconds
            ),
        ],
    )
    def test_every_configuration_of_a_job_is_silent(
        self, model: Any, changes: dict[str, Any]
    ) -> None:
        assert preflight(model, audit_plan(**changes)).result.verdict == "PASS"

    def test_the_model_is_left_as_it_was(self, model: Any) -> None:
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        preflight(model)
        assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
        assert all(p.grad is None for p in model.parameters())


class TestFaults:
    """AU32: each reaches p < 1e-9. The table of audit.md 8 gives 1 step, 5 unclipped."""

    @pytest.mark.parametrize(
        ("noise", "tamper"),
        [
            (NoNoise(1), None),
            (HalvedNoise(1), None),
            (None, sigma_times_clip),
            (None, one_group_unclipped),
        ],
        ids=REQUIRED_CONTROLS,
    )
    def test_a_required_control_trips(
        self, model: Any, noise: NoiseSource | None, tamper: Tamper | None
    ) -> None:
        found = preflight(model, noise=noise, tamper=tamper)
        assert found.result.min_p is not None
        assert found.result.min_p < 1e-9
        assert found.saved.report.verdict == "FAIL"
        assert found.is_fault_found

    def test_the_benchmarks_broken_arm_is_flagged_at_the_first_step(self, model: Any) -> None:
        """Its own training class, as the utility benchmark runs it: sqrt(K), one step."""
        assert BROKEN.tampering is not None
        training = BROKEN.tampering()

        def broken(**arguments: Any) -> Any:
            return training(
                make_policy=lambda _: None,
                journal=None,
                checkpoints=None,
                progress=None,
                **arguments,
            )

        found = preflight(model, noise=SeededSource(5), make_replica=broken)
        first = found.result.looks[0]
        assert first.step == 1
        assert first.min_p < ALARM_LEVEL
        assert found.result.verdict == "FAIL"

    def test_stds_that_do_not_make_the_level_are_a_difference_of_the_journal(
        self, correct: Preflight
    ) -> None:
        """The engine may do what settings say and the settings be wrong: audited apart."""
        wrong = tuple(sigma_times_clip(s) for s in correct.saved.settings)
        saved = dataclasses.replace(correct.saved, settings=wrong)
        assert "what the journal's noise levels say" in differences(saved, correct.scores)


class TestSaved:
    def test_the_file_is_read_back_whole(self, correct: Preflight) -> None:
        content = correct.saved.to_json()
        read = SavedAudit.from_json(content)
        assert read.report == correct.saved.report
        assert read.to_json() == content

    def test_every_figure_follows_from_report_and_scores(self, correct: Preflight) -> None:
        read = SavedAudit.from_json(correct.saved.to_json())
        assert differences(read, correct.scores) == ()

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            (("report", "selftest", "min_p"), 0.987),
            (("report", "selftest", "lag1"), 0.5),
            (("report", "verdict"), "PASS"),
            (("report", "canary", "n_included"), 400),
            (("report", "canary", "revealed_seed"), "00" * 32),
            (("manifest", "construction_seed"), "00" * 32),
            (("scores", "sha256"), "0" * 64),
        ],
        ids=lambda v: v[-1] if isinstance(v, tuple) else "",
    )
    def test_a_changed_figure_is_found(
        self, correct: Preflight, path: tuple[str, ...], value: object
    ) -> None:
        document = json.loads(correct.saved.to_json())
        place = document
        for name in path[:-1]:
            place = place[name]
        assert place[path[-1]] != value
        place[path[-1]] = value
        changed = SavedAudit.from_json(json.dumps(document).encode())
        assert differences(changed, correct.scores) != ()

    def test_scores_that_are_no_archive_are_an_answer(self, correct: Preflight) -> None:
        other = b"not an archive"
        digest = hashlib.sha256(other).hexdigest()
        saved = dataclasses.replace(correct.saved, scores_sha256=digest)
        assert differences(saved, other) == ("scores: not the scores of this report.",)

    @pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"format": "rldp-audit/9"}'])
    def test_another_file_is_refused(self, content: bytes) -> None:
        with pytest.raises(AuditInvalid):
            SavedAudit.from_json(content)


def test_a_verdict_is_a_function_of_the_report(correct: Preflight) -> None:
    assert conclude(correct.saved.report) == correct.saved.report


@pytest.mark.parametrize(("planned", "steps"), [(6, 5), (200, 10), (400, 20), (10_000, 20)])
def test_steps_are_at_most_a_twentieth_of_the_jobs(planned: int, steps: int) -> None:
    plan = dataclasses.replace(audit_plan(), steps_planned=planned, steps_started_max=planned)
    assert steps_of(plan) == steps

"""Partition canaries: geometry, expected and released scores (AU14-AU17, AU20, AU40, AU41)."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from dp_core.audit.canaries import (
    MembershipScores,
    PartitionCanaries,
    StepScores,
    layout_digest,
)
from dp_core.audit.errors import AuditInvalid
from dp_core.audit.selftest import SelfTest
from dp_core.clipping import clip_and_sum, whitened_factors
from dp_core.mechanism import GroupLayout, StepSettings, admit
from dp_core.plan import ClipFactor
from dp_core.ports import GroupActions
from tests.dp_core.audit.toy import toy_layout, toy_plan

LAYOUT = GroupLayout(ids=("a", "b", "c", "d"), sizes=(700, 133, 40, 1000))
CANARIES = 100  # group c carries 40 of them
GEOMETRY = PartitionCanaries(LAYOUT, canaries=CANARIES, construction_seed="5eed")
SEVERAL = np.array([3, 39, 40, 99])


def chosen(layout: GroupLayout = LAYOUT, clip: float = 0.05) -> StepSettings:
    """Settings with clips and shares that differ between groups."""
    count = len(layout)
    spread = tuple(np.linspace(-1, 1, count).tolist())
    action = GroupActions(clip=spread, share=spread[::-1], rate=(0.0,) * count)
    return admit(toy_plan("1"), layout, (clip,) * count, action)


def all_vectors(geometry: PartitionCanaries = GEOMETRY) -> list[np.ndarray]:
    ids = np.arange(geometry.canaries)
    return [geometry.vectors(ids, k, 1.0) for k in range(len(geometry.layout))]


class TestGeometry:
    def test_blocks_of_a_group_differ_by_at_most_one_coordinate(self) -> None:
        for vectors in all_vectors():
            filled = (vectors != 0).sum(axis=1)
            assert filled.max() - filled.min() <= 1
            assert filled.sum() == vectors.shape[1]  # every coordinate belongs to one canary

    def test_canaries_are_orthogonal_and_ten_clip_norms_long(self) -> None:
        for k, vectors in enumerate(all_vectors()):
            gram = vectors.astype(float) @ vectors.T
            expected = np.diag(np.where(GEOMETRY.is_carried[:, k], 100.0, 0.0))
            assert gram == pytest.approx(expected, abs=1e-4)

    def test_a_small_group_carries_the_first_canaries(self) -> None:
        assert GEOMETRY.is_carried[:, 2].tolist() == [True] * 40 + [False] * 60
        assert GEOMETRY.is_carried[:, [0, 1, 3]].all()

    def test_another_seed_gives_other_canaries_and_the_same_seed_the_same(self) -> None:
        same, other = (
            PartitionCanaries(LAYOUT, canaries=CANARIES, construction_seed=seed)
            for seed in ("5eed", "0dd5")
        )
        assert (all_vectors(same)[0] == all_vectors()[0]).all()
        assert (all_vectors(other)[0] != all_vectors()[0]).any()

    def test_the_construction_is_the_documented_one(self) -> None:
        """A fixed value: an outsider with the seed has to find the same blocks."""
        tiny = PartitionCanaries(toy_layout(1, 6), canaries=3, construction_seed="00")
        found = np.sign(tiny.vectors(np.arange(3), 0, 1.0)).astype(int).tolist()
        assert found == [[-1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1], [0, 0, 1, 1, 0, 0]]

    def test_signs_and_blocks_are_balanced(self) -> None:
        """5 sigma on the sign sum; false alarm 6e-7 (one fixed draw)."""
        wide = PartitionCanaries(toy_layout(1, 50_000), canaries=500, construction_seed="a")
        signs = np.sign(wide.vectors(np.arange(500), 0, 1.0)).sum(axis=0)
        assert abs(signs.sum()) < 5 * math.sqrt(50_000)

    def test_no_canaries_are_refused(self) -> None:
        with pytest.raises(AuditInvalid):
            PartitionCanaries(LAYOUT, canaries=0, construction_seed="5eed")


def clipped_rows(settings: StepSettings) -> list[torch.Tensor]:
    """Each canary of SEVERAL alone through the engine's clip, per group (n, size)."""
    parts = [
        torch.from_numpy(GEOMETRY.vectors(SEVERAL, k, c)) for k, c in enumerate(settings.clip_norms)
    ]
    if settings.rule == "whitened":
        norms = torch.stack([p.norm(dim=1) for p in parts])
        weights = torch.tensor(settings.whitening_weights)[:, None]
        factors = whitened_factors(norms, weights, torch.ones(len(SEVERAL)), settings.factor)
        return [factors[:, None] * p for p in parts]
    mask = torch.ones(1)
    return [
        torch.stack(
            [clip_and_sum([row[None]], c, mask, settings.factor).raw_sums[0] for row in part]
        )
        for part, c in zip(parts, settings.clip_norms, strict=True)
    ]


RULES = [
    {"rule": "per_group", "factor": "clip"},
    {"rule": "per_group", "factor": "auto_s"},
    {"rule": "per_group", "factor": "psac"},
    {"rule": "whitened", "factor": "clip"},
    {"rule": "whitened", "factor": "auto_s"},
    {"rule": "whitened", "factor": "psac"},
]


class TestExpected:
    @pytest.mark.parametrize("rule", RULES, ids=lambda r: "-".join(r.values()))
    @pytest.mark.parametrize("clip", [0.05, 0.0004])
    def test_is_the_engines_clipped_norm_in_stds(self, rule: dict[str, str], clip: float) -> None:
        """The audit restates the clip rules; here both meet, small clip norms included."""
        settings = dataclasses.replace(chosen(clip=clip), **rule)  # type: ignore[arg-type]
        norms = [part.double().norm(dim=1).numpy() for part in clipped_rows(settings)]
        measured = np.stack(norms, axis=1) / np.asarray(settings.noise_stds)
        assert GEOMETRY.expected(settings)[SEVERAL] == pytest.approx(measured, rel=1e-5, abs=1e-12)

    @pytest.mark.parametrize("rule", ["per_group", "whitened"])
    def test_a_canary_of_every_group_stands_at_the_clip_norm(self, rule: ClipFactor) -> None:
        settings = dataclasses.replace(chosen(), rule=rule)  # type: ignore[arg-type]
        ratio = np.asarray(settings.clip_norms) / np.asarray(settings.noise_stds)
        assert GEOMETRY.expected(settings)[0] == pytest.approx(ratio, rel=2e-5)

    def test_an_absent_part_is_expected_nowhere(self) -> None:
        assert (GEOMETRY.expected(chosen())[40:, 2] == 0).all()


class TestScores:
    def test_a_canary_in_the_sum_is_seen_at_its_clipped_norm_by_itself_alone(self) -> None:
        settings = chosen()
        sums = [part[1].double().numpy() for part in clipped_rows(settings)]  # canary 39
        step = GEOMETRY.scores(sums, settings)
        assert step.values[39] == pytest.approx(step.expected[39], rel=1e-5)
        assert np.delete(step.values, 39, axis=0) == pytest.approx(0, abs=1e-12)

    def test_noise_alone_is_standard_and_uncorrelated_between_blocks(self) -> None:
        """AU40. KS false alarm 1e-5; correlation of neighbours within 4.5/sqrt(n), 7e-6."""
        from scipy import stats

        generator, settings = np.random.default_rng(1), chosen()
        values = []
        for _ in range(60):
            sums = [
                s * generator.standard_normal(n)
                for s, n in zip(settings.noise_stds, LAYOUT.sizes, strict=True)
            ]
            values.append(GEOMETRY.scores(sums, settings).values[GEOMETRY.is_carried])
        x = np.stack(values)
        assert stats.kstest(x.reshape(-1), "norm").pvalue > 1e-5
        neighbours = (x[:, 1:] * x[:, :-1]).mean()
        assert abs(neighbours) < 4.5 / math.sqrt(x[:, 1:].size)

    def test_flipping_the_signs_of_a_block_in_sum_and_canary_changes_nothing(self) -> None:
        """AU40: only the agreement of the signs matters, not the signs."""
        settings, ids = chosen(), np.arange(CANARIES)
        generator = np.random.default_rng(2)
        flips = [np.where(generator.random(n) < 0.5, -1.0, 1.0) for n in LAYOUT.sizes]
        flipped = PartitionCanaries(LAYOUT, canaries=CANARIES, construction_seed="5eed")
        flipped._signs = flipped._signs * flips[3].astype(np.float32)  # longest group
        sums = [generator.standard_normal(n) for n in LAYOUT.sizes]
        moved = [z * flips[3][: len(z)] for z in sums]
        ours, theirs = GEOMETRY.scores(sums, settings), flipped.scores(moved, settings)
        assert theirs.values[ids] == pytest.approx(ours.values[ids], rel=1e-9)

    def test_another_shape_is_refused(self) -> None:
        with pytest.raises(AuditInvalid, match="sums"):
            GEOMETRY.scores([np.zeros(n + 1) for n in LAYOUT.sizes], chosen())


class TestMembershipScores:
    def test_is_the_log_likelihood_ratio_of_unknown_draws(self) -> None:
        """Against the densities themselves, over two steps."""
        from scipy import stats

        generator = np.random.default_rng(3)
        a, q = generator.uniform(0.1, 1, (2, 5, 3)), 0.1
        x = generator.standard_normal((2, 5, 3))
        scores = MembershipScores(canaries=5, sampling_probability="0.1")
        total = np.zeros(5)
        for t in range(2):
            scores.add(StepScores(values=x[t], expected=a[t]))
            out = stats.norm.pdf(x[t]).prod(axis=1)
            total += np.log((1 - q) + q * stats.norm.pdf(x[t] - a[t]).prod(axis=1) / out)
        assert scores.values == pytest.approx(total, rel=1e-9)

    @pytest.mark.parametrize("rate", ["1", "0.000000001"])
    def test_extreme_rates_and_scores_stay_finite(self, rate: str) -> None:
        scores = MembershipScores(canaries=2, sampling_probability=rate)
        scores.add(StepScores(values=np.full((2, 1), 200.0), expected=np.full((2, 1), 10.0)))
        assert np.isfinite(scores.values).all()


def test_the_layout_digest_covers_ids_and_sizes() -> None:
    other = GroupLayout(ids=LAYOUT.ids, sizes=(700, 133, 41, 1000))
    assert layout_digest(LAYOUT) != layout_digest(other)


def test_an_audit_is_checked_without_torch() -> None:
    names = "bounds curve coins canaries draws selftest figures power report"
    code = "import sys\n" + "\n".join(f"import dp_core.audit.{n}" for n in names.split())
    ran = subprocess.run(
        [sys.executable, "-c", code + "\nsys.exit('torch' in sys.modules)"], check=False
    )
    assert ran.returncode == 0


def median_cpu_seconds(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(9):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return float(np.median(seconds))


@pytest.mark.bench
def test_scoring_a_step_of_a_million_coordinates_takes_at_most_50_ms() -> None:
    """AU41: 1000 canaries, 24 groups; scores, self-test and the rows of 13 drawn canaries."""
    layout = toy_layout(24, 41_667)
    geometry = PartitionCanaries(layout, canaries=1000, construction_seed="5eed")
    settings, drawn = chosen(layout), np.arange(13)
    sums = [np.random.default_rng(0).standard_normal(n, dtype=np.float32) for n in layout.sizes]
    selftest = SelfTest(
        is_carried=geometry.is_carried,
        members=np.arange(500),
        sampling_probability="0.0256",
        batch_size_expected=100,
        looks=(10_000,),
    )
    step = geometry.scores(sums, settings)
    scoring = median_cpu_seconds(lambda: geometry.scores(sums, settings))
    testing = median_cpu_seconds(lambda: selftest.add(step, drawn, settings))

    def all_rows() -> None:
        for k in range(24):  # one group at a time, as the engine asks for them
            geometry.vectors(drawn, k, 1.0)

    rows = median_cpu_seconds(all_rows)
    print(
        f"1e6 coordinates: scores {1000 * scoring:.1f} ms, self-test {1000 * testing:.1f} ms, "
        f"rows {1000 * rows:.1f} ms"
    )
    assert scoring + testing + rows <= 0.050

"""Poisson draws and Gaussian noise (SAMPLE, NOISE; M14, M15, M21, M22).

Statistical tests use the production sources. Each states the rate at which it would
fail on a correct implementation.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from dp_core.errors import PlanInvalid
from dp_core.noise import OsEntropySource
from dp_core.ports import ChunkPermit, QueryPermit
from dp_core.sampling import PoissonSampler, is_validation_patient, microbatches


def draws(q: str, patients: int, count: int) -> list[np.ndarray]:
    sampler = PoissonSampler(sampling_probability=q, raw_population_size=patients)
    return [sampler.draw().reveal_inside_step() for _ in range(count)]


class TestPoissonSampler:
    def test_batch_sizes_are_binomial(self) -> None:
        """Chi-square on sizes; false alarm 1e-5."""
        sizes = [len(d) for d in draws("0.1", 60, 4000)]
        counts = np.bincount(sizes, minlength=61)
        expected = stats.binom.pmf(np.arange(61), 60, 0.1) * 4000
        keep = expected >= 5
        observed = np.append(counts[keep], counts[~keep].sum())
        wanted = np.append(expected[keep], expected[~keep].sum())
        assert stats.chisquare(observed, wanted).pvalue > 1e-5

    def test_each_patient_is_included_at_the_rate_and_gaps_are_geometric(self) -> None:
        """Inclusion counts: chi-square, false alarm 1e-5. Mean gap: 5 sigma."""
        included = np.zeros((3000, 40), dtype=bool)
        for row, drawn in enumerate(draws("0.2", 40, 3000)):
            included[row, drawn] = True
        counts = included.sum(axis=0)
        statistic = ((counts - 600) ** 2 / (3000 * 0.2 * 0.8)).sum()
        assert stats.chi2.sf(statistic, 40) > 1e-5
        gaps = np.concatenate([np.diff(np.flatnonzero(included[:, p])) for p in range(40)])
        sigma = np.sqrt((1 - 0.2) / 0.2**2 / len(gaps))
        assert abs(gaps.mean() - 5) < 5 * sigma

    def test_the_realised_rate_is_never_above_q(self) -> None:
        # floor(q 2^53) of 2^53 words; 0.3 is not a binary fraction
        sampler = PoissonSampler(
            sampling_probability="0.3",
            raw_population_size=1,
            entropy=lambda n: int((int(0.3 * 2**53) + 1) << 11).to_bytes(8, "little"),
        )
        assert len(sampler.draw().reveal_inside_step()) == 0

    def test_empty_draws_happen_and_take_one_microbatch(self) -> None:
        empty = [d for d in draws("0.0001", 50, 50) if len(d) == 0]
        assert len(empty) >= 40
        (only,) = microbatches(empty[0], 4)
        assert only.is_last
        assert (only.raw_patients == -1).all()

    @pytest.mark.parametrize("rate", ["0", "1.2"])
    def test_a_rate_outside_the_unit_interval_is_refused(self, rate: str) -> None:
        with pytest.raises(PlanInvalid):
            PoissonSampler(sampling_probability=rate, raw_population_size=5)

    def test_rows_are_picked_without_replacement(self) -> None:
        sampler = PoissonSampler(sampling_probability="1", raw_population_size=1)
        seen = {tuple(sampler.pick(4, 2)) for _ in range(200)}
        assert seen == {(a, b) for a in range(4) for b in range(a + 1, 4)}
        assert list(sampler.pick(2, 5)) == [0, 1]


class TestMicrobatches:
    @pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 40])
    def test_every_drawn_patient_appears_once_in_constant_shape(self, size: int) -> None:
        parts = list(microbatches(np.arange(size), 8))
        assert [len(p.raw_patients) for p in parts] == [8] * max(1, -(-size // 8))
        assert [p.is_last for p in parts] == [False] * (len(parts) - 1) + [True]
        together = np.concatenate([p.raw_patients for p in parts])
        assert sorted(together[together >= 0]) == list(range(size))


class TestSplit:
    def test_blocks_are_disjoint_stable_and_of_the_declared_size(self) -> None:
        """5 sigma on the share."""
        inside = [is_validation_patient(b"key", f"p{i}", "0.1") for i in range(20_000)]
        assert inside == [is_validation_patient(b"key", f"p{i}", "0.1") for i in range(20_000)]
        assert abs(sum(inside) - 2000) < 5 * np.sqrt(20_000 * 0.1 * 0.9)
        other = [is_validation_patient(b"other", f"p{i}", "0.1") for i in range(20_000)]
        assert inside != other


def permit(steps: int) -> ChunkPermit:
    return ChunkPermit(attempt=1, chunk_index=0, first_step=0, steps=steps, reference="t#0")


class TestOsEntropySource:
    def test_is_standard_normal_and_a_wrong_std_is_noticed(self) -> None:
        """KS; false alarm 1e-5. The same sample at 2/3 or 3/2 of the std must fail."""
        sample = OsEntropySource().draw(permit(1), 40_000)
        assert sample.dtype == torch.float32
        values = sample.double().numpy()
        assert stats.kstest(values, "norm").pvalue > 1e-5
        for wrong in (2 / 3, 3 / 2):
            assert stats.kstest(values * wrong, "norm").pvalue < 1e-6

    def test_steps_and_coordinates_are_uncorrelated(self) -> None:
        """4.5 / sqrt(n) on lag-one and between-step correlation; false alarm about 1e-5."""
        source = OsEntropySource()
        a, b = (source.draw(permit(2), 40_000).double() for _ in range(2))
        limit = 4.5 / np.sqrt(40_000)
        assert abs(float((a * b).mean())) < limit
        assert abs(float((a[1:] * a[:-1]).mean())) < limit

    def test_odd_lengths_and_queries(self) -> None:
        source = OsEntropySource()
        query = QueryPermit(attempt=1, query_index=0, reference="t#1")
        assert source.draw_query(query, 7).shape == (7,)
        assert torch.isfinite(source.draw(permit(1), 1)).all()

"""Noise sources: their law, their permits, what they prepare ahead, what they keep to
themselves (NOISE, N1-N6; M21, M22).

Kernel entropy cannot be seeded, so its statistics go through `assert_noise`, which states
the rate of false alarms.
"""

from __future__ import annotations

import copy
import os
import pickle
import threading
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch

from dp_core.errors import PermitExhausted, PlanInvalid, PlanViolation
from dp_core.mechanism import GRID_QUANTA
from dp_core.noise import (
    NoiseSource,
    OsEntropySource,
    SeededSource,
    TorchGeneratorSource,
    make_noise_source,
    require_private,
)
from dp_core.ports import ChunkPermit, QueryPermit
from tests.dp_core.noise_checks import assert_noise

LONG = 20_000  # enough to be prepared ahead
SOURCES: dict[str, Callable[[], NoiseSource]] = {
    "os_entropy": OsEntropySource,
    "torch_generator": TorchGeneratorSource,
    "seeded_test": lambda: SeededSource(7),
}
PRODUCTION = ("os_entropy", "torch_generator")


def permit(steps: int, chunk: int = 0) -> ChunkPermit:
    return ChunkPermit(attempt=1, chunk_index=chunk, first_step=0, steps=steps, reference="t#0")


def query(index: int = 0) -> QueryPermit:
    return QueryPermit(attempt=1, query_index=index, reference="t#1")


class TestLaw:
    @pytest.mark.parametrize("name", SOURCES)
    def test_steps_are_independent_unit_gaussians_in_float32(self, name: str) -> None:
        """NOISE on three steps; false alarm 1e-5. Every step after the first is prepared."""

        def steps() -> list[torch.Tensor]:
            source, charged = SOURCES[name](), permit(3)
            return [source.draw(charged, LONG) for _ in range(3)]

        assert_noise(steps, [1.0] * 3)

    @pytest.mark.parametrize("name", ["os_entropy", "seeded_test"])
    def test_integer_steps_have_the_std_of_the_grid(self, name: str) -> None:
        """NOISE on three steps; false alarm 1e-5."""

        def steps() -> list[torch.Tensor]:
            source, charged = SOURCES[name](), permit(3)
            return [source.draw_integers(charged, LONG) for _ in range(3)]

        assert steps()[0].dtype == torch.int64
        assert_noise(steps, [float(GRID_QUANTA)] * 3)

    @pytest.mark.parametrize("name", PRODUCTION)
    def test_two_sources_share_nothing(self, name: str) -> None:
        """N4, M21: a fresh attempt, rank or stream. False alarm 5e-6."""
        assert_noise(lambda: [SOURCES[name]().draw(permit(1), LONG) for _ in range(2)], [1.0] * 2)

    @pytest.mark.parametrize("name", SOURCES)
    def test_the_global_generator_is_left_alone(self, name: str) -> None:
        """N4: dropout and the policy draw from other streams."""
        before = torch.get_rng_state()
        source = SOURCES[name]()
        source.draw(permit(1), LONG)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("name", SOURCES)
    @pytest.mark.parametrize("length", [0, 1, 7, 16_384, 16_385])
    def test_every_length_is_filled(self, name: str, length: int) -> None:
        vector = SOURCES[name]().draw(permit(1), length)
        assert vector.shape == (length,)
        assert torch.isfinite(vector).all()

    def test_a_query_gets_one_unit_gaussian(self) -> None:
        """KS over 3000 queries as one vector; false alarm 1e-6."""
        source = OsEntropySource()
        index = iter(range(10_000))
        assert_noise(
            lambda: [torch.cat([source.draw_query(query(next(index)), 1) for _ in range(3000)])],
            [1.0],
        )


class Replayed(OsEntropySource):
    """The production algorithm on given words."""

    def __init__(self, words: np.ndarray) -> None:
        super().__init__()
        self.words = words

    def _entropy(self, length: int, /) -> bytes:
        assert length == self.words.nbytes
        return self.words.tobytes()


class TestOsEntropy:
    LENGTH = 50

    def words(self) -> np.ndarray:
        return np.random.default_rng(3).integers(0, 2**64, (2, 2, self.LENGTH), dtype=np.uint64)

    def test_no_value_takes_both_draws_of_one_pair(self) -> None:
        """cos + sin of one pair is a single draw at a shifted angle."""
        before, changed = self.words(), self.words()
        changed[:, 0, 20] ^= np.uint64(2**63)  # radius and angle of one pair
        moved = Replayed(before).draw(permit(1), self.LENGTH) != Replayed(changed).draw(
            permit(1), self.LENGTH
        )
        assert torch.nonzero(moved).flatten().tolist() == [20, 21]

    def test_each_value_is_half_the_sum_of_four_draws(self) -> None:
        words = self.words()
        uniform = ((words >> np.uint64(11)).astype(float) + 1) / 2**53
        radius, angle = np.sqrt(-2 * np.log(uniform[0])), 2 * np.pi * uniform[1]
        cosine, sine = radius * np.cos(angle), radius * np.sin(angle)
        got = Replayed(words).draw(permit(1), self.LENGTH).numpy()
        for i in range(self.LENGTH):
            draws = [cosine[0, i], cosine[1, i], sine[0, i - 1], sine[1, i - 1]]
            assert got[i] == pytest.approx(sum(draws) / 2, rel=1e-6, abs=1e-9)

    @pytest.mark.parametrize("word", [0, 2**64 - 1])
    def test_extreme_words_give_finite_noise(self, word: int) -> None:
        words = np.full((2, 2, 2), word, dtype=np.uint64)
        assert torch.isfinite(Replayed(words).draw(permit(1), 2)).all()

    def test_the_kernel_is_asked_for_every_byte(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[int] = []
        kernel = os.urandom
        monkeypatch.setattr(os, "urandom", lambda n: asked.append(n) or kernel(n))  # type: ignore[func-returns-value]
        OsEntropySource().draw(permit(1), LONG)
        assert sum(asked) == 32 * LONG

    @pytest.mark.parametrize("draw", ["draw", "draw_integers"])
    def test_memory_beside_the_vector_does_not_grow_with_it(self, draw: str) -> None:
        def peak(length: int) -> int:
            tracemalloc.start()
            try:
                vector = getattr(OsEntropySource(), draw)(permit(1), length)
                result = 0 if draw == "draw" else vector.numel() * 8  # torch's is not traced
                return tracemalloc.get_traced_memory()[1] - result
            finally:
                tracemalloc.stop()

        assert peak(400_000) < 1.2 * peak(100_000)


class TestTorchGenerator:
    def test_the_whole_state_is_kernel_entropy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`manual_seed` keeps 32 bits; two states that differ in one late word must differ."""

        def drawn(entropy: np.ndarray) -> torch.Tensor:
            monkeypatch.setattr(os, "urandom", lambda n: entropy.tobytes()[:n])
            return TorchGeneratorSource().draw(permit(1), 2000)

        first = np.random.default_rng(1).integers(0, 2**32, 624, dtype=np.uint32)
        other = first.copy()
        other[600] ^= 1
        assert torch.equal(drawn(first), drawn(first))
        assert not torch.equal(drawn(first), drawn(other))

    def test_draws_are_made_in_float64(self) -> None:
        """torch's float32 normals end at 5.77 (N3)."""
        source = TorchGeneratorSource()
        twin = torch.Generator()
        twin.set_state(source._generator.get_state())
        expected = torch.randn(1000, dtype=torch.float64, generator=twin).float()
        assert torch.equal(source.draw(permit(1), 1000), expected)

    def test_a_forked_process_seeds_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        source = TorchGeneratorSource()
        twin = torch.Generator()
        twin.set_state(source._generator.get_state())
        monkeypatch.setattr(os, "getpid", lambda: -1)
        parents = torch.randn(1000, dtype=torch.float64, generator=twin).float()
        assert not torch.equal(source.draw(permit(1), 1000), parents)

    def test_it_draws_no_integers(self) -> None:
        with pytest.raises(PlanInvalid, match="Use os_entropy"):
            TorchGeneratorSource().draw_integers(permit(1), 5)


class TestPermits:
    @pytest.mark.parametrize("name", SOURCES)
    def test_each_step_is_drawn_once(self, name: str) -> None:
        source, charged = SOURCES[name](), permit(2)
        source.draw(charged, LONG)
        source.draw(charged, LONG)
        with pytest.raises(PermitExhausted, match="All 2 charged draws"):
            source.draw(charged, LONG)

    def test_integers_and_floats_share_the_steps(self) -> None:
        source, charged = OsEntropySource(), permit(2)
        source.draw(charged, 3)
        source.draw_integers(charged, 3)
        for draw in (source.draw, source.draw_integers):
            with pytest.raises(PermitExhausted):
                draw(charged, 3)

    def test_a_query_is_drawn_once(self) -> None:
        source = OsEntropySource()
        source.draw_query(query(), 1)
        with pytest.raises(PermitExhausted):
            source.draw_query(query(), 1)

    def test_a_closed_chunk_gives_no_more_noise(self) -> None:
        source, charged = OsEntropySource(), permit(5)
        source.draw(charged, 3)
        source.close(charged)
        with pytest.raises(PermitExhausted):
            source.draw(charged, 3)


class Counted(OsEntropySource):
    """The n-th vector drawn is n everywhere; notes the thread that drew it."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.threads: list[str] = []
        self.fails_at = fails_at

    def _gaussian(self, length: int) -> torch.Tensor:
        self.threads.append(threading.current_thread().name)
        number = len(self.threads) - 1
        if number == self.fails_at:
            raise OSError("no entropy")
        return torch.full((length,), float(number))


def number(vector: torch.Tensor) -> int:
    return int(vector[0])


def noise_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "noise-ahead"]


class TestPreparation:
    def test_every_step_but_the_first_is_drawn_beside_the_loop(self) -> None:
        source, charged = Counted(), permit(4)
        assert [number(source.draw(charged, LONG)) for _ in range(4)] == [0, 1, 2, 3]
        assert source.threads[0] == threading.current_thread().name
        assert source.threads[1:] == ["noise-ahead"] * 3

    def test_nothing_is_drawn_beyond_the_charged_steps(self) -> None:
        source, charged = Counted(), permit(3)
        for _ in range(3):
            source.draw(charged, LONG)
        assert noise_threads() == []
        assert len(source.threads) == 3

    def test_closing_ends_the_thread_and_drops_its_vector(self) -> None:
        source = Counted()
        source.draw(permit(3), LONG)
        source.close(permit(3))
        assert noise_threads() == []
        assert number(source.draw(permit(3, chunk=1), LONG)) == 2  # vector 1 is gone

    def test_no_vector_crosses_into_another_chunk(self) -> None:
        source = Counted()
        source.draw(permit(3), LONG)
        assert number(source.draw(permit(1, chunk=1), LONG)) == 2
        assert noise_threads() == []

    def test_another_length_is_drawn_anew(self) -> None:
        source = Counted()
        source.draw(permit(3), LONG)
        other = source.draw(permit(3), LONG + 1)
        assert (number(other), len(other)) == (2, LONG + 1)
        source.close(permit(3))

    def test_floats_prepared_are_not_handed_out_as_integers(self) -> None:
        source = Counted()
        source.draw(permit(3), LONG)
        assert source.draw_integers(permit(3), LONG).dtype == torch.int64
        source.close(permit(3))

    def test_a_forked_process_leaves_its_parents_vector_alone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = Counted()
        source.draw(permit(2), LONG)
        monkeypatch.setattr(os, "getpid", lambda: -1)
        assert number(source.draw(permit(2), LONG)) == 2

    def test_what_fails_in_the_thread_fails_the_step_that_needs_it(self) -> None:
        source, charged = Counted(fails_at=1), permit(3)
        source.draw(charged, LONG)
        with pytest.raises(OSError, match="no entropy"):
            source.draw(charged, LONG)
        assert number(source.draw(charged, LONG)) == 2  # its step is spent all the same
        with pytest.raises(PermitExhausted):
            source.draw(charged, LONG)

    def test_short_vectors_start_no_thread(self) -> None:
        source = Counted()
        source.draw(permit(2), 100)
        assert noise_threads() == []

    def test_a_seeded_run_draws_in_its_own_order(self) -> None:
        source = SeededSource(1)
        source.draw(permit(3), LONG)
        assert noise_threads() == []


class TestSecrecy:
    @pytest.mark.parametrize("name", SOURCES)
    @pytest.mark.parametrize("use", [pickle.dumps, copy.copy, copy.deepcopy])
    def test_a_source_is_neither_pickled_nor_copied(
        self, name: str, use: Callable[[NoiseSource], object]
    ) -> None:
        """A copy would give the same noise twice, and two releases could be subtracted."""
        with pytest.raises(TypeError, match="make one per attempt"):
            use(SOURCES[name]())

    @pytest.mark.parametrize("name", SOURCES)
    def test_its_state_is_not_given_away(self, name: str) -> None:
        with pytest.raises(TypeError, match="gives no state away"):
            SOURCES[name]().__getstate__()

    @pytest.mark.parametrize("name", SOURCES)
    @pytest.mark.parametrize("show", [repr, str, lambda source: f"{source}"])
    def test_its_text_names_the_class_and_nothing_else(
        self, name: str, show: Callable[[NoiseSource], str]
    ) -> None:
        source = SOURCES[name]()
        source.draw(permit(3), LONG)
        assert show(source) == f"{type(source).__name__}()"
        source.close(permit(3))

    @pytest.mark.parametrize("source", [OsEntropySource, TorchGeneratorSource])
    def test_a_production_source_takes_no_seed(self, source: type[NoiseSource]) -> None:
        with pytest.raises(TypeError):
            source(1)  # type: ignore[call-arg]


class TestFactory:
    @pytest.mark.parametrize("name", PRODUCTION)
    def test_makes_a_fresh_source_of_the_named_class(self, name: str) -> None:
        source = make_noise_source(name)
        assert source.name == name
        assert source.is_private
        assert make_noise_source(name) is not source
        require_private(source)

    @pytest.mark.parametrize("name", ["seeded_test", "SeededSource", "", "OS_ENTROPY", "none"])
    def test_every_other_name_is_refused_with_a_remedy(self, name: str) -> None:
        with pytest.raises(PlanInvalid, match="Use os_entropy") as caught:
            make_noise_source(name)
        assert caught.value.field == "noise_source"

    def test_seeded_noise_reaches_no_certificate(self) -> None:
        with pytest.raises(PlanViolation, match="make_noise_source"):
            require_private(SeededSource(1))

    def test_a_class_that_only_claims_to_be_private_is_refused(self) -> None:
        assert Counted.is_private
        with pytest.raises(PlanViolation):
            require_private(Counted())

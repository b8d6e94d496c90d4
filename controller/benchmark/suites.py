"""What a suite runs: corpora, sizes, guarantees, seeds. Torch-free, every number public.

Sizes of `cpu` follow from a measured price: on one core of the development machine a patient of
64 tokens costs 16 to 20 ms of training and 7 ms of evaluation (medtext-gpt2-4m, rank 4,
bfloat16), by what else the machine does. The budget is 120 CPU-minutes, two cores for one hour.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from controller.errors import SettingInvalid

RATES = ("0.0025", "0.005", "0.01", "0.02", "0.04", "0.08", "0.16")  # one grid for all arms
RATE_FIRST = "0.02"
FLOOR, CEILING = "base", "non_private"  # rows of a table that are no arms


def _decay(runs_per_horizon: int, steps: int) -> str:
    """Of a mean over a fraction of the run; 0.9, the plan's own, for long runs."""
    return f"{min(max(1 - runs_per_horizon / steps, 0.0), 0.9):.3f}"


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One corpus at one size. Every arm runs exactly this, at the same (epsilon, delta)."""

    corpus: str
    patients: int  # of the training split, at most
    tokens_per_row: int
    batch_size: int
    steps: int
    steps_per_window: int
    notes_tuning: int
    notes_test: int
    delta: str = "1e-5"
    rank: int = 4
    patients_per_microbatch: int = 8

    @property
    def alpha(self) -> int:
        """LoRA's scale numerator: the usual twice the rank."""
        return 2 * self.rank

    @property
    def averaging_decay(self) -> str:
        """Weights are averaged over a tenth of the run, at most over ten steps, in every arm.

        The plan's own 0.9 lags ten steps behind; in a run of 24 that cost 12 % of perplexity.
        """
        return _decay(10, self.steps)

    @property
    def beta1(self) -> str:
        """Adam's momentum looks back over a fifth of the run, at most over ten steps.

        For the same reason: 0.8 instead of 0.9 was worth 13 % of perplexity at 24 steps.
        """
        return _decay(5, self.steps)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A named list of work. Fields are counts unless they say otherwise."""

    name: str
    summary: str
    workloads: tuple[Workload, ...]
    models: tuple[str, ...] = ("medtext-gpt2-4m",)
    arms: tuple[str, ...] = ()  # empty: all that are no ablations
    epsilons: tuple[str, ...] = ("8", "2")
    seeds: int = 5
    is_tuned: bool = True
    seeds_untuned: int = 1  # at every arm's published rate
    arms_short: int = 4  # the best so many arms, re-calibrated for half the steps
    seeds_short: int = 3
    base_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    autocast: bool = True
    needs_cuda: bool = False

    def changed(self, **given: Any) -> Suite:
        """The suite with those of the options that were given (not None, not empty)."""
        return dataclasses.replace(self, **{k: v for k, v in given.items() if v})


DIABETES = Workload(
    corpus="diabetes130",
    patients=16_384,
    tokens_per_row=64,
    batch_size=32,
    steps=24,
    steps_per_window=2,
    notes_tuning=32,
    notes_test=64,
)
MTS = Workload(
    corpus="mts_dialog",
    patients=1_001,
    tokens_per_row=32,
    batch_size=64,
    steps=36,
    steps_per_window=3,
    notes_tuning=64,
    notes_test=96,
)

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            name="ci",
            summary="reference against flat, one seed, one epsilon: does it still run and learn?",
            workloads=(dataclasses.replace(DIABETES, patients=4_096, notes_test=32),),
            arms=("reference", "flat"),
            epsilons=("8",),
            seeds=1,
            is_tuned=False,
            seeds_untuned=0,
            arms_short=0,
        ),
        Suite(
            name="cpu",
            summary="all arms, two corpora, epsilon 8 and 2, five paired seeds, tuning included",
            workloads=(DIABETES, MTS),
        ),
        Suite(
            name="long",
            summary="a job of usual length, no tuning: which default serves a hospital?",
            workloads=(
                dataclasses.replace(
                    DIABETES, batch_size=64, steps=200, steps_per_window=10, notes_test=128
                ),
            ),
            arms=("reference", "rldp_pretrained", "quantile"),
            epsilons=("8",),
            seeds=2,
            is_tuned=False,
            seeds_untuned=2,
            arms_short=0,
        ),
        Suite(
            name="gpu",
            summary="GPT2-small-sized and 1B-sized random models, epsilon 0.5 to 8; needs CUDA",
            workloads=(
                dataclasses.replace(
                    DIABETES,
                    patients=30_000,
                    tokens_per_row=256,
                    batch_size=256,
                    steps=400,
                    steps_per_window=10,
                    notes_tuning=256,
                    notes_test=1_024,
                    rank=8,
                    patients_per_microbatch=32,
                ),
                dataclasses.replace(
                    MTS,
                    tokens_per_row=128,
                    batch_size=128,
                    steps=200,
                    steps_per_window=10,
                    rank=8,
                    patients_per_microbatch=32,
                ),
            ),
            models=("random-gpt2-small", "random-llama-1b"),
            epsilons=("8", "4", "2", "0.5"),
            needs_cuda=True,
        ),
    )
}


def find_suite(name: str) -> Suite:
    """The suite of that name.

    Raises:
        SettingInvalid: there is none.
    """
    if name not in SUITES:
        raise SettingInvalid("suite", f"choose one of {', '.join(SUITES)}")
    return SUITES[name]


def choose_workloads(suite: Suite, corpora: Sequence[str]) -> Suite:
    """The suite on the named corpora only.

    Raises:
        SettingInvalid: a corpus that the suite does not use.
    """
    known = [w.corpus for w in suite.workloads]
    if unknown := set(corpora) - set(known):
        raise SettingInvalid("corpus", f"{', '.join(sorted(unknown))}: choose {', '.join(known)}")
    chosen = tuple(w for w in suite.workloads if not corpora or w.corpus in corpora)
    return dataclasses.replace(suite, workloads=chosen)

"""What the privacy benchmark runs: sizes, arms, repetitions of canaries. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from controller.benchmark.inserted import TextCanary, make_canaries
from controller.benchmark.results import Run
from controller.benchmark.suites import CEILING, Workload
from controller.errors import SettingInvalid

CANARY_SEED = 1  # the same canaries for every arm and seed


@dataclass(frozen=True, kw_only=True)
class PrivacySuite:
    """Arms on one workload. `workload.patients` are the corpus's own that train (members)."""

    name: str
    summary: str
    workload: Workload
    arms: tuple[str, ...] = ("rldp_pretrained", "reference", "flat", CEILING)
    epsilon: str = "8"
    seeds: int = 2
    repeats: tuple[int, ...] = (1, 4, 16)
    canaries_each: int = 4  # of every number of repetitions
    left_out: int = 64  # reference secrets
    learning_rate: str = "0.02"  # of every arm; nothing is tuned here
    model: str = "medtext-gpt2-4m"

    def canaries(self) -> list[TextCanary]:
        return make_canaries(
            self.repeats, each=self.canaries_each, left_out=self.left_out, seed=CANARY_SEED
        )


def _workload(patients: int, steps: int, batch_size: int) -> Workload:
    return Workload(
        corpus="diabetes130",
        patients=patients,
        tokens_per_row=64,
        batch_size=batch_size,
        steps=steps,
        steps_per_window=2,
        notes_tuning=0,
        notes_test=patients,  # as many outsiders as members
    )


SUITES = {
    suite.name: suite
    for suite in (
        PrivacySuite(
            name="small",
            summary="192 members and outsiders, 24 steps of 32, two seeds; minutes on one core",
            workload=_workload(192, 24, 32),
        ),
        PrivacySuite(
            name="cpu",
            summary="1,000 members and outsiders, 100 steps of 64, five seeds; hours on two cores",
            workload=_workload(1_000, 100, 64),
            seeds=5,
            canaries_each=8,
            left_out=256,
        ),
    )
}


def find_privacy_suite(name: str) -> PrivacySuite:
    """The suite of that name.

    Raises:
        SettingInvalid: there is none.
    """
    if name not in SUITES:
        raise SettingInvalid("suite", f"choose one of {', '.join(SUITES)}")
    return SUITES[name]


def run_of(suite: PrivacySuite, arm: str, seed: int) -> Run:
    return Run(
        model=suite.model,
        workload=suite.workload,
        arm=arm,
        epsilon="inf" if arm == CEILING else suite.epsilon,
        learning_rate=suite.learning_rate,
        seed=seed,
        split="test",
    )


def key_of(suite: PrivacySuite, run: Run) -> str:
    """Names everything that decides the outcome."""
    repeats = ".".join(map(str, suite.repeats))
    return f"privacy/k{repeats}x{suite.canaries_each}-r{suite.left_out}/{run.key}"

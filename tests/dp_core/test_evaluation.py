"""The paid hold-out loss: charged first, and as accurate as it says."""

from __future__ import annotations

import numpy as np
import torch

from dp_core.evaluation import HoldOutQuery
from dp_core.noise import NoiseSource, OsEntropySource, SeededSource
from dp_core.plan import Performance
from dp_core.records import PatientRecords
from dp_core.sampling import PoissonSampler
from tests.dp_core.conftest import make_plan
from tests.fakes import MemoryJournal

PATIENTS = 400


class ConstantModel:
    """Gives every patient the same loss, log 2 nats a token."""

    training = False

    def eval(self) -> None: ...

    def train(self, mode: bool) -> None: ...

    def __call__(self, input_ids: torch.Tensor) -> object:
        class Output:
            logits = torch.zeros(*input_ids.shape, 2)

        return Output()


def rows_of(patients: int) -> PatientRecords:
    raw = [[np.array([0, 1, 0, 1], dtype=np.int32)] for _ in range(patients)]
    return PatientRecords(raw_rows=raw, tokens_per_row=4, pad_id=0)


def query(
    *, noise: NoiseSource | None = None, rate: str = "0.5"
) -> tuple[HoldOutQuery, MemoryJournal]:
    plan = make_plan(patients_public=4000, validation_batch_size=200, delta="1e-5", steps_max=40)
    assert plan.validation is not None
    journal = MemoryJournal(plan)
    made = HoldOutQuery(
        plan=plan,
        validation=plan.validation,
        records=rows_of(PATIENTS),
        journal=journal,
        noise_source=noise or OsEntropySource(),
        performance=Performance(patients_per_microbatch=64),
        sampler=PoissonSampler(sampling_probability=rate, raw_population_size=PATIENTS),
    )
    return made, journal


def test_the_true_loss_lies_within_the_stated_error() -> None:
    """5 sigma; the first query looks from the middle of the range, the second from nearby."""
    asked, journal = query()
    first = asked.ask(ConstantModel(), step=0, previous=None)
    assert first is not None
    second = asked.ask(ConstantModel(), step=0, previous=first.loss)
    assert second is not None
    truth = float(np.log(2))
    for report in (first, second):
        assert abs(report.loss.value - truth) < 5 * report.loss.std
    assert second.loss.std < first.loss.std / 2, "centred on the loss released before"
    assert [q.query_index for q in journal.queries] == [0, 1]


def test_nothing_is_asked_beyond_the_planned_queries() -> None:
    asked, journal = query()
    limit = make_plan(
        patients_public=4000, validation_batch_size=200, delta="1e-5", steps_max=40
    ).validation
    assert limit is not None
    for _ in range(limit.evaluations_max):
        assert asked.ask(ConstantModel(), step=0, previous=None) is not None
    assert asked.ask(ConstantModel(), step=0, previous=None) is None
    assert len(journal.queries) == limit.evaluations_max


def test_noise_of_the_stated_std_enters_each_query() -> None:
    """Noise of one, and everybody drawn: what is added is what the charge says."""

    class Units(SeededSource):
        def _gaussian(self, length: int) -> torch.Tensor:
            return torch.ones(length)

    asked, journal = query(noise=Units(1), rate="1")
    report = asked.ask(ConstantModel(), step=0, previous=None)
    assert report is not None
    raw_mean = (np.log(2) - 3) * PATIENTS / 200
    (charge,) = journal.queries
    noise = float(charge.std) / 200
    assert abs(report.loss.value - (3 + raw_mean + noise)) < 1e-4
    assert float(charge.std) >= float(charge.noise_multiplier) * float(charge.sensitivity)

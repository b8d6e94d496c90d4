"""Learning-rate schedules and weight averaging on hand-made numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dp_core.errors import PlanInvalid
from dp_core.plan import OptimizerPlan
from dp_core.schedule import AveragedWeights, learning_rate


class TestLearningRate:
    def rates(self, schedule: str) -> list[float]:
        plan = OptimizerPlan(
            learning_rate="0.1",
            warmup_fraction="0.2",
            final_rate_fraction="0.1",
            schedule=schedule,  # type: ignore[arg-type]
        )
        return [learning_rate(plan, step, 10) for step in range(11)]

    @pytest.mark.parametrize(
        ("schedule", "middle", "last"),
        [("cosine", 0.055, 0.01), ("linear", 0.055, 0.01), ("constant", 0.1, 0.1)],
    )
    def test_warms_up_then_decays_as_named(self, schedule: str, middle: float, last: float) -> None:
        rates = self.rates(schedule)
        assert rates[:3] == pytest.approx([0.05, 0.1, 0.1])
        assert rates[6] == pytest.approx(middle)
        assert rates[10] == pytest.approx(last)

    def test_a_cosine_stays_high_longer_than_a_line(self) -> None:
        assert self.rates("cosine")[4] > self.rates("linear")[4]

    def test_another_name_is_refused(self) -> None:
        with pytest.raises(PlanInvalid, match="cosine, linear, constant"):
            OptimizerPlan(schedule="step")  # type: ignore[arg-type]


class TestAveraging:
    def test_is_corrected_for_its_start_and_swaps_back(self) -> None:
        weight = nn.Parameter(torch.zeros(2))
        averaged = AveragedWeights([weight], 0.5)
        for value in (1.0, 2.0):
            with torch.no_grad():
                weight.fill_(value)
            averaged.update()
        live = averaged.swap_in()
        assert torch.allclose(weight, torch.full((2,), (0.25 * 1 + 0.5 * 2) / 0.75))
        averaged.swap_out(live)
        assert torch.equal(weight, torch.full((2,), 2.0))

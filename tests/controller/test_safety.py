"""The safety net freezes damaged jobs, and leaves sound ones alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from controller.errors import PolicyStateMismatch, SettingInvalid
from controller.safety import SafetyConfig, SafetyNet
from dp_core.telemetry import ReleasedValue
from tests.controller.cases import simulated_job, with_loss

START = simulated_job(groups=1).telemetry


def judged(losses: list[float], std: float = 0.01) -> SafetyNet:
    net = SafetyNet()
    for chunk, loss in enumerate(losses):
        net = net.judge(replace(with_loss(START, loss, std), chunk=chunk))
    return net


class TestJudge:
    def test_two_windows_behind_freeze(self) -> None:
        assert judged([2.0, 1.9, 2.5, 2.5]).frozen_at_chunk == 3

    def test_one_window_behind_does_not(self) -> None:
        net = judged([2.0, 1.9, 2.5, 1.9, 2.5])
        assert net.frozen_at_chunk is None
        assert net.windows_behind == 1

    def test_frozen_stays_frozen(self) -> None:
        assert judged([2.0, 1.9, 2.5, 2.5, 1.0, 0.5]).frozen_at_chunk == 3

    def test_slow_rise_is_noticed_although_each_step_is_small(self) -> None:
        """The forecast is the lowest mean met, so it does not drift upwards with the loss."""
        rising = [2.0 + 0.02 * step for step in range(12)]
        assert judged(rising).frozen_at_chunk is not None

    def test_same_rise_within_the_noise_is_not(self) -> None:
        assert judged([2.0 + 0.02 * step for step in range(12)], std=0.5).frozen_at_chunk is None

    def test_loss_that_is_not_finite_counts_as_behind(self) -> None:
        assert judged([2.0, float("nan"), float("inf")]).frozen_at_chunk == 2

    def test_windows_without_a_loss_are_not_judged(self) -> None:
        net = judged([2.0, 2.5])
        assert net.windows_behind == 1
        assert net.judge(replace(START, loss=None)) is net

    def test_hold_out_loss_counts_where_there_is_one(self) -> None:
        net = SafetyNet()
        for chunk, hold_out in enumerate([2.0, 2.5, 2.5]):
            telemetry = replace(
                with_loss(START, 3.0 - chunk),
                chunk=chunk,
                validation_loss=ReleasedValue(value=hold_out, std=0.01),
            )
            net = net.judge(telemetry)
        assert net.frozen_at_chunk == 2

    def test_sound_job_is_frozen_in_fewer_than_one_of_a_hundred_runs(self) -> None:
        """2,000 seeded jobs of 40 flat windows.

        At a true rate of 1 of 100, 8 or fewer freezes would have probability 0.002.
        """
        generator = np.random.default_rng(11)
        noise = 2.0 + 0.05 * generator.standard_normal((2000, 40))
        frozen = sum(judged(list(row), std=0.05).frozen_at_chunk is not None for row in noise)
        assert frozen <= 8


class TestDocument:
    def test_round_trip(self) -> None:
        net = judged([2.0, 1.9, 2.5])
        assert SafetyNet.from_dict(net.to_dict(), net.config) == net

    @pytest.mark.parametrize(
        "damage", [{"training": {}}, {"windows_behind": "x"}, {"training": {"mean": "a"}}]
    )
    def test_damaged_document_is_refused(self, damage: dict[str, object]) -> None:
        with pytest.raises(PolicyStateMismatch):
            SafetyNet.from_dict({**SafetyNet().to_dict(), **damage}, SafetyConfig())


def test_setting_that_is_not_positive_is_refused() -> None:
    with pytest.raises(SettingInvalid):
        SafetyConfig(windows_behind_max=0)

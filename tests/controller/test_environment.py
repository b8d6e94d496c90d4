"""The environment keeps Gymnasium's contract, behaves like DP-SGD, and can be learned."""

from __future__ import annotations

import numpy as np
import pytest
from stable_baselines3 import SAC
from stable_baselines3.common.env_checker import check_env

from controller.actions import ActionRanges
from controller.environment import WindowEnvironment
from controller.errors import GroupsChanged
from controller.observation import Rows
from controller.simulation import JobRanges
from dp_core.ports import GroupActions
from tests.controller.cases import simulated_job


class TestContract:
    @pytest.mark.parametrize("row", [None, -1, 2])
    def test_passes_the_checker_without_a_warning(self, row: int | None) -> None:
        check_env(WindowEnvironment(row=row), warn=True)

    def test_same_seed_same_episode(self) -> None:
        assert episode(seed=5) == episode(seed=5)
        assert episode(seed=5) != episode(seed=6)

    def test_episode_ends_with_the_job(self) -> None:
        environment = WindowEnvironment(ranges=JobRanges(windows=3))
        environment.reset(seed=0)
        ends = [environment.step(np.zeros(3, dtype=np.float32))[2] for _ in range(3)]
        assert ends == [False, False, True]


class TestDynamics:
    def test_more_noise_ends_with_more_loss(self) -> None:
        ends = [
            np.mean([final_loss(seed, noise_multiplier=(s, s)) for seed in range(20)])
            for s in (1.0, 3.0, 9.0)
        ]
        assert ends[0] < ends[1] < ends[2]

    def test_reported_noise_obeys_the_charged_multiplier(self) -> None:
        """1/sigma^2 = sum (C_k / s_k)^2 (privacy.md G2), whatever the proposal."""
        job = simulated_job()
        odd = GroupActions(clip=(1, -1, 0.5, 0), share=(-1, 1, 0, 0.3), rate=(0, 0, 0, 0))
        telemetry = job.run_window(odd)
        inverse = sum((g.clip_norm / g.noise_std) ** 2 for g in telemetry.groups)
        assert inverse**-0.5 == pytest.approx(telemetry.noise_multiplier)

    def test_reported_loss_scatters_around_the_true_loss_with_its_stated_std(self) -> None:
        """400 draws; the mean's bound is 4 standard errors, the std's 4 (false alarms 1e-4)."""
        errors = []
        for seed in range(400):
            job = simulated_job(seed)
            loss = job.run_window(GroupActions.neutral(4)).loss
            assert loss is not None
            errors.append((loss.value - job.true_loss) / loss.std)
        assert abs(np.mean(errors)) < 4 / 20
        assert abs(np.std(errors) - 1) < 4 / np.sqrt(800)

    def test_proposal_for_other_groups_is_refused(self) -> None:
        with pytest.raises(GroupsChanged):
            simulated_job().run_window(GroupActions.neutral(3))


def test_plain_sac_learns_to_raise_a_rate_that_is_too_low() -> None:
    """Jobs whose learning rate is 2.5 to 10 times too low; the agent is the job row.

    40 paired episodes with seeds not used in training; the mean gain must be more than
    4 standard errors above 0 (false alarm below 1e-4 for an agent that learned nothing).
    """
    model = SAC(
        "MlpPolicy",
        low_rate_environment(),
        seed=0,
        learning_rate=1e-3,
        gamma=0.9,
        learning_starts=100,
        batch_size=64,
        ent_coef="auto_0.05",
        policy_kwargs={"net_arch": [64, 64]},
        device="cpu",
    )
    reference = evaluate(None)
    model.learn(700)
    gain = reference - evaluate(model)
    assert gain.mean() > 4 * gain.std(ddof=1) / np.sqrt(len(gain))
    assert gain.mean() > 0.03  # nats, of about 0.3 that the best constant action gains


def low_rate_environment() -> WindowEnvironment:
    ranges = JobRanges(windows=8, rate_offset=(0.1, 0.4))
    return WindowEnvironment(ranges=ranges, actions=ActionRanges(base_rate=1.0), row=-1)


def evaluate(model: SAC | None, episodes: int = 40) -> Rows:
    environment = low_rate_environment()
    losses = []
    for index in range(episodes):
        observation, _ = environment.reset(seed=10_000 + index)
        is_done = False
        while not is_done:
            action = np.zeros(3, dtype=np.float32)
            if model is not None:
                action, _ = model.predict(observation, deterministic=True)
            observation, _, is_done, _, info = environment.step(action)
        losses.append(info["true_loss"])
    return np.array(losses, dtype=np.float32)


def episode(seed: int) -> list[float]:
    environment = WindowEnvironment(ranges=JobRanges(windows=4))
    first, _ = environment.reset(seed=seed)
    action = np.full(3, 0.5, dtype=np.float32)
    steps = [environment.step(action) for _ in range(4)]
    return [float(v) for row in (first, *(s[0] for s in steps)) for v in row] + [
        float(s[1]) for s in steps
    ]


def final_loss(seed: int, *, noise_multiplier: tuple[float, float]) -> float:
    job = simulated_job(seed, noise_multiplier=noise_multiplier)
    while not job.is_done:
        job.run_window(GroupActions.neutral(4))
    return job.true_loss

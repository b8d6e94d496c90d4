"""The learning policy: near the reference, reproducible, restorable, contained."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from controller.errors import GroupsChanged, PolicyStateMismatch, SettingInvalid
from controller.observation import OBSERVATION_SIZE
from controller.sac import DOCUMENT_FILE, TENSORS_FILE, SacPolicy
from controller.sac_config import SacConfig
from dp_core.ports import GroupActions
from tests.controller.cases import run_job, sac_policy, simulated_job, with_loss


class TestPropose:
    def test_first_window_runs_the_reference(self) -> None:
        job = simulated_job()
        assert sac_policy(job).propose(job.telemetry) == GroupActions.neutral(4)

    def test_starts_near_the_reference(self) -> None:
        """Range 0.5 times std 0.15 is 0.075; 300 draws stay within 4.5 deviations + mean."""
        job = simulated_job(groups=100)
        policy = sac_policy(job)
        second = run_job(policy, job, windows=2)[1]
        values = np.array([second.clip, second.share, second.rate])
        assert np.abs(values).max() < 0.5 * (4.5 * 0.15 + 0.05)
        assert 0.06 < values.std() < 0.09
        assert abs(values.mean()) < 0.02

    def test_exploration_never_leaves_its_bound(self) -> None:
        job = simulated_job(groups=50)
        policy = sac_policy(job, config=SacConfig(exploration_std_first=5.0, exploration_max=0.1))
        second = run_job(policy, job, windows=2)[1]
        assert np.abs([second.clip, second.share, second.rate]).max() <= 0.5 * (0.1 + 0.05)

    def test_same_seed_same_actions(self) -> None:
        runs = []
        for _ in range(2):
            job = simulated_job()
            torch.manual_seed(len(runs))  # the caller's generators must not matter
            runs.append(run_job(sac_policy(job, seed=3), job))
        assert runs[0] == runs[1]

    def test_another_seed_other_actions(self) -> None:
        jobs = [simulated_job(), simulated_job()]
        first, second = (run_job(sac_policy(j, seed=s), j) for s, j in enumerate(jobs))
        assert first[1] != second[1]

    def test_other_groups_are_refused(self) -> None:
        job = simulated_job()
        policy = sac_policy(job)
        swapped = (job.telemetry.groups[1], job.telemetry.groups[0], *job.telemetry.groups[2:])
        with pytest.raises(GroupsChanged):
            policy.propose(replace(job.telemetry, groups=swapped))


class TestLearn:
    def test_training_moves_the_actor_after_the_second_window(self) -> None:
        job = simulated_job()
        policy = sac_policy(job)
        actors = []
        for _ in range(3):
            run_job(policy, job, windows=1)
            tensors = load(policy.state()[TENSORS_FILE])
            actors.append(tensors["network/actor.mu.weight"])
        assert torch.equal(
            actors[0], load(sac_policy(job).state()[TENSORS_FILE])["network/actor.mu.weight"]
        )
        assert not torch.equal(actors[0], actors[1])
        assert not torch.equal(actors[1], actors[2])

    def test_one_transition_per_row_and_window(self) -> None:
        job = simulated_job(groups=4, windows=6)
        policy = sac_policy(job)
        run_job(policy, job, windows=3)
        tensors = load(policy.state()[TENSORS_FILE])
        assert tensors["replay/observations"].shape == (3 * 5, 1, OBSERVATION_SIZE)
        assert tensors["replay/dones"].sum() == 0
        run_job(policy, job)
        assert (
            load(policy.state()[TENSORS_FILE])["replay/dones"].flatten()[-5:].tolist() == [1.0] * 5
        )

    def test_learned_window_is_not_learned_twice(self) -> None:
        job = simulated_job()
        policy = sac_policy(job)
        run_job(policy, job, windows=3)
        state = policy.state()
        policy.learn(job.telemetry)
        assert policy.state() == state

    def test_window_without_a_proposal_is_remembered_but_not_trained_on(self) -> None:
        job = simulated_job()
        policy = sac_policy(job)
        policy.learn(job.run_window(GroupActions.neutral(4)))
        tensors = load(policy.state()[TENSORS_FILE])
        assert len(tensors["replay/rewards"]) == 0
        document = json.loads(policy.state()[DOCUMENT_FILE])
        assert document["memory"]["training"]["level"] is not None

    def test_replay_stays_within_its_capacity(self) -> None:
        job = simulated_job(windows=8)
        policy = sac_policy(job, config=SacConfig(replay_rows_max=12))
        run_job(policy, job)
        restored = sac_policy(job, config=SacConfig(replay_rows_max=12))
        restored.restore(policy.state())
        assert len(load(restored.state()[TENSORS_FILE])["replay/rewards"]) == 12
        assert restored.state() == policy.state()

    def test_exploration_narrows_towards_the_end(self) -> None:
        policy = sac_policy(simulated_job(), chunks_planned=10)
        targets = [policy._target_entropy(windows) for windows in (0, 5, 10, 99)]
        assert targets[0] > targets[1] > targets[2] == targets[3]


class TestSafetyNet:
    def test_two_bad_windows_give_the_job_back_to_the_reference(self) -> None:
        job = simulated_job(windows=8)
        policy = sac_policy(job, chunks_planned=8)
        losses = iter([2.0, 1.9, 2.9, 2.9, 1.0, 1.0, 1.0, 1.0])
        proposals = []
        while not job.is_done:
            proposals.append(policy.propose(job.telemetry))
            job.telemetry = with_loss(job.run_window(proposals[-1]), next(losses))
            policy.learn(job.telemetry)
        assert policy.is_frozen
        assert policy.frozen_at_chunk == 3
        neutral = GroupActions.neutral(4)
        assert [p == neutral for p in proposals] == [True] + [False] * 3 + [True] * 4

    def test_frozen_policy_stays_frozen_after_restore_and_learns_no_more(self) -> None:
        job = simulated_job(windows=8)
        policy = sac_policy(job, chunks_planned=8)
        for loss in (2.0, 2.9, 2.9):
            policy.propose(job.telemetry)
            job.telemetry = with_loss(job.run_window(GroupActions.neutral(4)), loss)
            policy.learn(job.telemetry)
        restored = sac_policy(job, chunks_planned=8)
        restored.restore(policy.state())
        assert restored.frozen_at_chunk == 2
        before = load(restored.state()[TENSORS_FILE])
        assert run_job(restored, job) == [GroupActions.neutral(4)] * 5
        after = load(restored.state()[TENSORS_FILE])
        assert all(torch.equal(before[n], after[n]) for n in before if n.startswith("network/"))


class TestState:
    def test_restored_policy_goes_on_as_if_never_stopped(self) -> None:
        """Stopped between proposal and report, where a worker is most likely to die."""
        job = simulated_job()
        policy = sac_policy(job)
        run_job(policy, job, windows=3)
        policy.propose(job.telemetry)
        restored = sac_policy(job)
        restored.restore(policy.state())
        telemetry = job.run_window(restored.propose(job.telemetry))
        for each in (policy, restored):
            each.learn(telemetry)
        assert restored.propose(telemetry) == policy.propose(telemetry)
        assert restored.digest() == policy.digest()
        assert restored.state() == policy.state()

    def test_digest_follows_parameters(self) -> None:
        job = simulated_job()
        policy = sac_policy(job)
        digests = [policy.digest()]
        for _ in range(3):
            run_job(policy, job, windows=1)
            digests.append(policy.digest())
        assert len(set(digests)) == 4

    def test_state_of_another_seed_or_other_groups_is_refused(self) -> None:
        job = simulated_job()
        state = sac_policy(job, seed=1).state()
        for other in (sac_policy(job, seed=2), sac_policy(simulated_job(groups=5), seed=1)):
            with pytest.raises(PolicyStateMismatch):
                other.restore(state)

    @pytest.mark.parametrize(
        "damage",
        ["missing", "not_json", "not_safetensors", "nan", "shape", "renamed", "moments", "replay"],
    )
    def test_damaged_state_is_refused_whole(self, damage: str) -> None:
        job = simulated_job()
        policy = sac_policy(job)
        run_job(policy, job, windows=3)
        before = policy.state()
        with pytest.raises(PolicyStateMismatch):
            policy.restore(damaged(before, damage))
        assert policy.state() == before


def damaged(state: dict[str, bytes], damage: str) -> dict[str, bytes]:
    if damage == "missing":
        return {TENSORS_FILE: state[TENSORS_FILE]}
    if damage == "not_json":
        return {**state, DOCUMENT_FILE: b"\x80\x04K\x01."}
    if damage == "not_safetensors":
        return {**state, TENSORS_FILE: b"\x80\x04K\x01."}
    tensors = load(state[TENSORS_FILE])
    name = "network/actor.mu.weight"
    if damage == "nan":
        tensors[name][0, 0] = float("nan")
    elif damage == "shape":
        tensors[name] = tensors[name][:, :-1].contiguous()
    elif damage == "renamed":
        tensors["network/other"] = tensors.pop(name)
    elif damage == "moments":
        del tensors["optimizer/actor/0/exp_avg"]
    elif damage == "replay":
        tensors["replay/rewards"] = tensors["replay/rewards"][:-1].contiguous()
    return {**state, TENSORS_FILE: save(tensors)}


class TestSettings:
    def test_no_groups_or_no_windows_are_refused(self) -> None:
        with pytest.raises(SettingInvalid):
            SacPolicy(groups=(), seed=0, chunks_planned=3)
        with pytest.raises(SettingInvalid):
            sac_policy(simulated_job(), chunks_planned=0)

    def test_setting_that_is_not_positive_is_refused(self) -> None:
        with pytest.raises(SettingInvalid):
            SacConfig(gradient_steps=0)


def test_a_window_costs_far_less_than_a_second_of_processor_time() -> None:
    """32 groups, one core; measured about 30 ms, so the bound holds on a busy machine."""
    job = simulated_job(groups=32)
    policy = sac_policy(job)
    run_job(policy, job, windows=2)
    started = time.process_time()
    run_job(policy, job, windows=3)
    assert (time.process_time() - started) / 3 < 0.5

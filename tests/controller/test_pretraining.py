"""The synthetic tasks behave as LoRA under DP-SGD, and training on them is repeatable."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from controller.actions import PRETRAINED_RANGES
from controller.errors import GroupsChanged, PolicyStateMismatch, SettingInvalid
from controller.observation import describe_groups
from controller.pretraining.commands import export_policy
from controller.pretraining.job import SyntheticJob
from controller.pretraining.lora_task import SCALE, LoraTask
from controller.pretraining.policy_file import CARD_FILE, TENSORS_FILE, read_policy
from controller.pretraining.rows import JobRows
from controller.pretraining.tasks import (
    EVALUATION_STREAM,
    TRAINING_STREAM,
    TaskRanges,
    draw_task,
    with_modules,
)
from controller.released import require_released
from controller.reward import RewardConfig
from controller.sac import SacPolicy
from dp_core.ports import GroupActions
from tests.controller.cases import global_state
from tests.controller.pretraining_cases import SMALL, trained

TASK = draw_task(TaskRanges.small(), stream=EVALUATION_STREAM, index=1)


def run(job: SyntheticJob, actions: GroupActions) -> float:
    while not job.is_done:
        job.run_window(actions)
    return job.true_loss


class TestTask:
    def test_patient_gradients_are_those_of_the_stated_loss(self) -> None:
        """By finite differences of the mean loss, with the same patients drawn again."""
        lora = LoraTask(TASK)
        a, b = lora.start_a, lora.start_b + 0.1

        def mean_loss(a: np.ndarray, b: np.ndarray) -> float:
            return float(lora.gradients(a, b, 8, np.random.default_rng(5)).losses.mean())

        found = lora.gradients(a, b, 8, np.random.default_rng(5))
        sums_b, sums_a = found.clipped_sums(np.ones_like(found.norms))
        for weights, sums, side in ((b, sums_b, 1), (a, sums_a, 0)):
            direction = np.random.default_rng(6).standard_normal(weights.shape)
            step = 1e-3 * direction
            up, down = ((a, b + step), (a, b - step)) if side else ((a + step, b), (a - step, b))
            slope = (mean_loss(*up) - mean_loss(*down)) / 2e-3
            assert float((sums * direction).sum()) / 8 == pytest.approx(slope, rel=0.02)

    def test_norms_are_the_lengths_of_the_outer_products(self) -> None:
        lora = LoraTask(TASK)
        found = lora.gradients(lora.start_a, lora.start_b + 0.1, 3, np.random.default_rng(5))
        one = np.einsum("mno,mnr->mnor", found.left_b, found.right_b)
        lengths = np.sqrt((one.astype(np.float64) ** 2).sum(axis=(2, 3)))
        assert found.norms[: TASK.modules] == pytest.approx(lengths, rel=1e-4)

    def test_a_has_no_gradient_while_b_is_zero(self) -> None:
        lora = LoraTask(TASK)
        found = lora.gradients(lora.start_a, lora.start_b, 3, np.random.default_rng(5))
        assert not found.norms[TASK.modules :].any()
        assert found.norms[: TASK.modules].all()

    def test_the_expected_loss_is_the_mean_over_patients(self) -> None:
        """Patients of length 1: floor + excess against 20,000 draws."""
        lora = LoraTask(replace(TASK, spread=1e-9))
        drawn = lora.gradients(lora.start_a, lora.start_b, 20_000, np.random.default_rng(5))
        expected = lora.floor + lora.excess_loss(lora.start_a, lora.start_b)
        assert drawn.losses.mean() == pytest.approx(expected, rel=0.03)

    def test_the_excess_is_what_the_task_says_and_the_teacher_takes_it_away(self) -> None:
        lora = LoraTask(TASK)
        assert lora.excess_loss(lora.start_a, lora.start_b) == pytest.approx(TASK.excess_loss)
        shape = (TASK.modules, TASK.inputs, TASK.inputs)
        eye = np.broadcast_to(np.eye(TASK.inputs), shape)
        perfect = lora.excess_loss(eye, lora._teacher / SCALE)
        assert perfect == pytest.approx(0.0, abs=1e-9)

    def test_streams_never_share_a_task(self) -> None:
        drawn = [draw_task(TaskRanges(), stream=s, index=i) for s in (0, 1) for i in range(50)]
        assert len({task.seed for task in drawn}) == 100
        assert TRAINING_STREAM != EVALUATION_STREAM

    def test_the_noise_has_the_drawn_signal_to_noise(self) -> None:
        """B .3 / sqrt(d K snr): 32 * .3 / sqrt(100 * 8 * .02) = 2.4."""
        task = replace(
            TASK, batch_size=32, rank=2, inputs=50, outputs=50, modules=4, signal_to_noise=0.02
        )
        assert task.noise_multiplier == pytest.approx(2.4)


class TestJob:
    def test_twins_meet_the_same_luck(self) -> None:
        neutral = GroupActions.neutral(2 * TASK.modules)
        assert run(SyntheticJob(TASK), neutral) == run(SyntheticJob(TASK), neutral)

    def test_a_rate_far_too_high_does_harm(self) -> None:
        wild = replace(TASK, learning_rate=2.0)
        groups = 2 * TASK.modules
        slow = replace(GroupActions.neutral(groups), base_rate=-1.0)
        assert run(SyntheticJob(wild), slow) < run(SyntheticJob(wild), GroupActions.neutral(groups))

    def test_telemetry_is_released_and_of_a_real_job_s_form(self) -> None:
        job = SyntheticJob(TASK)
        require_released(job.telemetry)
        assert job.telemetry.chunk == -1
        telemetry = job.run_window(GroupActions.neutral(2 * TASK.modules))
        require_released(telemetry)
        assert telemetry.chunk == 0
        assert telemetry.groups[0].kind == "c_attn.A"
        assert telemetry.loss is not None

    def test_the_released_signal_is_unbiased_and_the_bits_mean_what_they_say(self) -> None:
        """Over 40 jobs of A at B = 0: no signal, every patient below the clip norm."""
        signals, fractions = [], []
        for seed in range(40):
            job = SyntheticJob(replace(TASK, seed=seed, steps_per_window=1))
            telemetry = job.run_window(GroupActions.neutral(2 * TASK.modules))
            group = telemetry.groups[0]
            signals.append(group.signal_norm_squared / (group.size * group.noise_std**2))
            assert group.clip_fraction is not None
            fractions.append((group.clip_fraction.value, group.clip_fraction.std))
        std = math.sqrt(2 / TASK.rank / TASK.inputs / 40)
        assert abs(float(np.mean(signals))) < 5 * std
        error = math.hypot(np.mean([s for _, s in fractions]), 0.3) / math.sqrt(40)
        assert float(np.mean([f for f, _ in fractions])) == pytest.approx(1.0, abs=5 * error)

    def test_other_numbers_of_groups_are_refused(self) -> None:
        with pytest.raises(GroupsChanged):
            SyntheticJob(TASK).run_window(GroupActions.neutral(3))


class TestRows:
    def test_the_reference_is_worth_nothing(self) -> None:
        """Rewards are centred by the twin: action 0 earns 0 but for the groups' own credit."""
        rows = JobRows(
            TaskRanges.small(), actions=PRETRAINED_RANGES, reward=RewardConfig(credit_weight=0.0)
        )
        rows.reset()
        for _ in range(7):
            rows.step_async(np.zeros((rows.num_envs, 3), dtype=np.float32))
            observations, rewards, dones, infos = rows.step_wait()
            assert not rewards.any()
            assert observations.shape == (5, observations.shape[1])
            assert np.isfinite(observations).all()
            assert all(
                ("terminal_observation" in i) == d for i, d in zip(infos, dones, strict=True)
            )


class TestPolicyFile:
    def test_same_seed_same_policy(self, tmp_path: Path) -> None:
        before = global_state()
        first, second = trained(tmp_path / "a"), trained(tmp_path / "b")
        assert first.digest == second.digest
        assert global_state() == before

    def test_card_says_how_it_was_made(self, tmp_path: Path) -> None:
        card = trained(tmp_path).card
        assert card["training"]["seed"] == 0
        assert card["training"]["windows_run"] == SMALL.windows
        assert card["suite"]["tasks"] == json.loads(json.dumps(TaskRanges.small().to_dict()))
        assert set(card["evaluation"]) >= {"mean", "standard_error", "worst", "tasks"}
        assert "torch" in card["versions"]
        assert card["command"].startswith("rldp policy pretrain")

    @pytest.mark.parametrize("damage", ["byte", "shape", "nan", "features", "card"])
    def test_damage_is_refused(self, tmp_path: Path, damage: str) -> None:
        trained(tmp_path)
        tensors, card = tmp_path / TENSORS_FILE, tmp_path / CARD_FILE
        document = json.loads(card.read_text())
        if damage == "byte":
            data = bytearray(tensors.read_bytes())
            data[-1] ^= 1
            tensors.write_bytes(bytes(data))
        elif damage in ("shape", "nan"):
            held = load_file(tensors)
            name = "network/actor.mu.bias"
            held[name] = torch.zeros(7) if damage == "shape" else held[name] * torch.nan
            save_file(held, tensors)
            import hashlib

            document["digest"] = hashlib.sha256(tensors.read_bytes()).hexdigest()
        elif damage == "features":
            document["features"] = document["features"][:-1]
        else:
            document = ["no card"]
        card.write_text(json.dumps(document))
        with pytest.raises(PolicyStateMismatch):
            read_policy(tmp_path)

    def test_a_missing_policy_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(PolicyStateMismatch):
            read_policy(tmp_path)

    def test_export_copies_and_never_overwrites(self, tmp_path: Path) -> None:
        digest = trained(tmp_path / "made").digest
        assert export_policy(tmp_path / "made", tmp_path / "copy") == digest
        assert read_policy(tmp_path / "copy").digest == digest
        with pytest.raises(SettingInvalid):
            export_policy(tmp_path / "made", tmp_path / "copy")


class TestShippedPolicy:
    @pytest.mark.parametrize("tensors", [24, 96, 448])
    def test_runs_unchanged_on_any_number_of_tensors(self, tensors: int) -> None:
        """Same file, same networks: GPT2-small has 96 with A and B of 48 layers, a 1B model 448."""
        task = with_modules(replace(TASK, windows=4, steps_per_window=1), tensors // 2)
        job = SyntheticJob(task)
        policy = SacPolicy(
            groups=describe_groups(job.telemetry),
            seed=1,
            chunks_planned=4,
            pretrained=read_policy(),
        )
        for _ in range(3):
            action = policy.propose(job.telemetry)
            values = np.array([action.clip, action.share, action.rate])
            assert values.shape == (3, tensors)
            assert np.abs(values).max() <= 1.0
            policy.learn(job.run_window(action))

    @pytest.mark.parametrize("learns", [True, False])
    def test_same_seed_same_actions(self, learns: bool) -> None:
        histories = []
        for _ in range(2):
            job = SyntheticJob(TASK)
            policy = SacPolicy(
                groups=describe_groups(job.telemetry),
                seed=4,
                chunks_planned=TASK.windows,
                pretrained=read_policy(),
                learns=learns,
            )
            history = []
            while not job.is_done:
                history.append(policy.propose(job.telemetry))
                policy.learn(job.run_window(history[-1]))
            histories.append(history)
        assert histories[0] == histories[1]

    def test_a_policy_that_does_not_learn_plays_the_mean_whatever_its_seed(self) -> None:
        job = SyntheticJob(TASK)
        groups, file = describe_groups(job.telemetry), read_policy()
        first, second = (
            SacPolicy(groups=groups, seed=s, chunks_planned=4, pretrained=file, learns=False)
            for s in (1, 2)
        )
        assert first.propose(job.telemetry) == second.propose(job.telemetry)

    def test_a_masked_sensor_changes_nothing_it_could_have_said(self) -> None:
        job = SyntheticJob(TASK)
        groups, file = describe_groups(job.telemetry), read_policy()
        policy = SacPolicy(
            groups=groups,
            seed=1,
            chunks_planned=4,
            pretrained=file,
            learns=False,
            masked=["log_learning_rate"],
        )
        other = replace(job.telemetry, learning_rate=job.telemetry.learning_rate * 7)
        assert policy.propose(job.telemetry) == policy.propose(other)
        with pytest.raises(SettingInvalid):
            SacPolicy(groups=groups, seed=1, chunks_planned=4, masked=["charm"])

    def test_state_of_a_scratch_policy_does_not_fit(self) -> None:
        job = SyntheticJob(TASK)
        groups = describe_groups(job.telemetry)
        scratch = SacPolicy(groups=groups, seed=1, chunks_planned=4)
        shipped = SacPolicy(groups=groups, seed=1, chunks_planned=4, pretrained=read_policy())
        assert scratch.digest() != shipped.digest()
        with pytest.raises(PolicyStateMismatch):
            shipped.restore(scratch.state())

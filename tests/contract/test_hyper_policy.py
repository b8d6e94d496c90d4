"""What every `HyperPolicy` keeps; the suite runs on each one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from controller.errors import ControllerError, GroupsChanged
from controller.factory import make_policy
from dp_core.ports import GroupActions, HyperPolicy
from dp_core.telemetry import Raw
from tests.controller.cases import global_state, hostile_telemetry, run_job, simulated_job

GROUPS = 4
MakePolicy = Callable[[], HyperPolicy]


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


TYPES = ("reference", "rldp", "rldp_pretrained")


@pytest.fixture(params=TYPES)
def make(request: pytest.FixtureRequest) -> MakePolicy:
    first = simulated_job(groups=GROUPS).telemetry
    return lambda: make_policy(request.param, groups=first, seed=5, chunks_planned=6)


class TestPropose:
    def test_each_group_gets_each_action_within_the_unit_range(self, make: MakePolicy) -> None:
        for actions in run_job(make(), simulated_job()):
            assert type(actions) is GroupActions
            values = np.array([actions.clip, actions.share, actions.rate])
            assert values.shape == (3, GROUPS)
            assert np.abs(values).max() <= 1.0
            assert max(abs(actions.base_rate), abs(actions.level)) <= 1.0

    @pytest.mark.parametrize("controller_type", ["reference", "rldp"])
    def test_without_pretraining_the_first_proposal_is_the_reference(
        self, controller_type: str
    ) -> None:
        """A pretrained policy knows something about plans before it has seen a gradient."""
        first = simulated_job(groups=GROUPS).telemetry
        policy = make_policy(controller_type, groups=first, seed=5, chunks_planned=6)
        assert policy.propose(first) == GroupActions.neutral(GROUPS)

    def test_asked_again_it_answers_the_same(self, make: MakePolicy) -> None:
        """A charge repeated after a lost answer must be the same charge."""
        job, policy = simulated_job(), make()
        run_job(policy, job, windows=3)
        digest = policy.digest()
        assert policy.propose(job.telemetry) == policy.propose(job.telemetry)
        assert policy.digest() == digest

    def test_same_history_same_proposals(self, make: MakePolicy) -> None:
        assert run_job(make(), simulated_job()) == run_job(make(), simulated_job())

    def test_other_number_of_groups_is_refused(self, make: MakePolicy) -> None:
        with pytest.raises(GroupsChanged):
            make().propose(simulated_job(groups=GROUPS + 1).telemetry)

    def test_raw_value_is_refused_everywhere(self, make: MakePolicy) -> None:
        policy = make()
        telemetry = replace(simulated_job().telemetry, chunk=0, loss=Raw(1.0))  # type: ignore[arg-type]
        for call in (policy.propose, policy.learn):
            with pytest.raises(TypeError):
                call(telemetry)


@pytest.mark.parametrize("controller_type", TYPES)
@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_numbers_are_survived(controller_type: str, data: st.DataObject) -> None:
    """NaN, infinities and huge integers: proposals stay finite and the state storable."""
    names = [g.group_id for g in simulated_job(groups=2).telemetry.groups]
    first = simulated_job(groups=2).telemetry
    policy = make_policy(controller_type, groups=first, seed=5, chunks_planned=4)
    for chunk in range(-1, 3):
        telemetry = data.draw(hostile_telemetry(2))
        groups = tuple(replace(g, group_id=n) for g, n in zip(telemetry.groups, names, strict=True))
        telemetry = replace(telemetry, chunk=chunk, groups=groups)
        policy.learn(telemetry)
        actions = policy.propose(telemetry)
        values = [*actions.clip, *actions.share, *actions.rate, actions.base_rate, actions.level]
        assert all(abs(v) <= 1.0 for v in values)
    restored = make_policy(controller_type, groups=first, seed=5, chunks_planned=4)
    restored.restore(policy.state())
    assert restored.propose(telemetry) == actions


class TestContainment:
    def test_global_generators_and_settings_are_left_as_found(self, make: MakePolicy) -> None:
        before = global_state()
        policy = make()
        assert global_state() == before
        job = simulated_job()
        run_job(policy, job, windows=4)
        assert global_state() == before
        make().restore(policy.state())
        policy.digest()
        assert global_state() == before


class TestState:
    def test_digest_is_a_sha256_that_two_equal_policies_share(self, make: MakePolicy) -> None:
        digest = make().digest()
        assert len(bytes.fromhex(digest)) == 32
        assert make().digest() == digest

    def test_state_is_safetensors_and_json_only(self, make: MakePolicy) -> None:
        job, policy = simulated_job(), make()
        run_job(policy, job, windows=3)
        readers = {".json": json.loads, ".safetensors": load}
        for name, blob in policy.state().items():
            assert type(blob) is bytes
            assert readers[name[name.rindex(".") :]](blob)

    @pytest.mark.parametrize("windows", [0, 1, 4])
    def test_restored_twin_proposes_and_learns_the_same(
        self, make: MakePolicy, windows: int
    ) -> None:
        job, policy, twin = simulated_job(), make(), make()
        run_job(policy, job, windows=windows)
        twin.restore(policy.state())
        assert twin.digest() == policy.digest()
        while not job.is_done:
            actions = policy.propose(job.telemetry)
            assert twin.propose(job.telemetry) == actions
            telemetry = job.run_window(actions)
            policy.learn(telemetry)
            twin.learn(telemetry)
        assert twin.state() == policy.state()

    @pytest.mark.parametrize("foreign", [{}, {"policy.json": b"{}"}, {"policy.zip": b"PK"}])
    def test_foreign_state_is_refused_and_changes_nothing(
        self, make: MakePolicy, foreign: dict[str, bytes]
    ) -> None:
        policy = make()
        before = policy.state()
        with pytest.raises(ControllerError):
            policy.restore(foreign)
        assert policy.state() == before

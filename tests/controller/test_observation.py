"""Rows are of fixed shape, finite, bounded, named, and made of released values only."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.errors import GroupsChanged, PolicyStateMismatch
from controller.observation import (
    ACTION_SIZE,
    BOUND,
    FEATURES,
    OBSERVATION_SIZE,
    ObservationMemory,
    Rows,
    RunningLoss,
    describe_groups,
    elapsed_fraction,
    observe,
)
from dp_core.telemetry import GroupTelemetry, Raw, ReleasedValue, WindowTelemetry
from tests.controller.cases import hostile_telemetry, simulated_job

GROUPS = 3
NAMES = [name for name, _ in FEATURES]


def actions(groups: int) -> Rows:
    return np.zeros((groups + 1, ACTION_SIZE), dtype=np.float32)


def column(rows: Rows, name: str) -> list[float]:
    return [float(v) for v in rows[:, NAMES.index(name)]]


class TestShapeAndRange:
    def test_one_row_per_group_and_one_for_the_job(self) -> None:
        telemetry = simulated_job().telemetry
        rows = observe(telemetry, ObservationMemory.empty(4), actions(4))
        assert rows.shape == (5, OBSERVATION_SIZE)
        assert rows.dtype == np.float32
        assert column(rows, "is_job_row") == [0, 0, 0, 0, 1]

    def test_feature_names_are_unique_and_tagged_public_or_released(self) -> None:
        assert len(set(NAMES)) == len(NAMES) == OBSERVATION_SIZE
        assert {tag for _, tag in FEATURES} == {"PUBLIC", "RELEASED"}

    @given(data=st.data())
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_every_number_gives_a_finite_bounded_row(self, data: st.DataObject) -> None:
        memory = ObservationMemory.empty(GROUPS)
        for _ in range(2):
            telemetry = data.draw(hostile_telemetry(GROUPS))
            memory = memory.advance(telemetry)
            rows = observe(telemetry, memory, actions(GROUPS))
            assert np.isfinite(rows).all()
            assert np.abs(rows).max() <= BOUND
        assert ObservationMemory.from_dict(memory.to_dict()) == memory

    def test_job_row_holds_the_mean_of_the_groups_and_no_kind(self) -> None:
        job = simulated_job()
        rows = observe(job.telemetry, ObservationMemory.empty(4), actions(4))
        sizes = column(rows, "log_size")
        assert sizes[-1] == pytest.approx(np.mean(sizes[:-1]), abs=1e-5)
        assert rows[-1, NAMES.index("projection_query") : NAMES.index("time")].sum() == 0

    @pytest.mark.parametrize(
        ("kind", "flags"),
        [
            ("q_proj.A", {"projection_query", "tensor_A"}),
            ("c_attn.B", {"projection_fused", "tensor_B"}),
            ("down_proj", {"projection_down", "tensor_pair"}),
            ("c_proj.A", {"projection_other", "tensor_A"}),
        ],
    )
    def test_kind_becomes_flags(self, kind: str, flags: set[str]) -> None:
        telemetry = simulated_job(groups=1).telemetry
        telemetry = replace(telemetry, groups=(replace(telemetry.groups[0], kind=kind),))
        row = observe(telemetry, ObservationMemory.empty(1), actions(1))[0]
        kinds = [n for n in NAMES if n.startswith(("projection_", "tensor_"))]
        assert {n for n in kinds if row[NAMES.index(n)] == 1.0} == flags

    def test_rows_do_not_depend_on_the_unit_of_the_gradient(self) -> None:
        """Scaling clip norm, noise and signal together changes only the clip norm's row."""
        job = simulated_job()
        telemetry = job.run_window(neutral())
        scaled = replace(
            telemetry,
            groups=tuple(
                replace(
                    g,
                    clip_norm=g.clip_norm * 8,
                    noise_std=g.noise_std * 8,
                    signal_norm_squared=g.signal_norm_squared * 64,
                )
                for g in telemetry.groups
            ),
        )
        memory = ObservationMemory.empty(4)
        first = observe(telemetry, memory.advance(telemetry), actions(4))
        second = observe(scaled, memory.advance(scaled), actions(4))
        differing = {NAMES[i] for i in np.unique(np.nonzero(np.abs(first - second) > 1e-4)[1])}
        assert differing == {"log_clip_norm"}

    def test_other_number_of_groups_is_refused(self) -> None:
        with pytest.raises(GroupsChanged):
            observe(simulated_job().telemetry, ObservationMemory.empty(3), actions(3))


class TestMemory:
    def test_noisier_clip_fraction_moves_the_mean_less(self) -> None:
        telemetry = simulated_job(groups=1).run_window(neutral(1))
        moved = []
        for std in (0.01, 0.25, 10.0):
            fraction = ReleasedValue(value=1.0, std=std)
            group = replace(telemetry.groups[0], clip_fraction=fraction)
            after = ObservationMemory.empty(1).advance(replace(telemetry, groups=(group,)))
            moved.append(after.fraction_error[0])
        assert moved[0] == pytest.approx(0.2, rel=0.01)
        assert moved[1] == pytest.approx(0.1)
        assert moved[2] < 0.001

    def test_utility_counts_the_hold_out_loss_where_there_is_one(self) -> None:
        loss = ReleasedValue
        before = ObservationMemory(
            fraction_error=(),
            signal=(),
            training=RunningLoss(level=2.0),
            validation=RunningLoss(level=3.0),
        )
        telemetry = replace(simulated_job().telemetry, groups=())
        both = replace(
            telemetry, loss=loss(value=9.0, std=0.0), validation_loss=loss(value=2.0, std=0.0)
        )
        assert before.advance(both).utility_change(before) == pytest.approx(0.4)
        only = replace(telemetry, loss=loss(value=1.0, std=0.0))
        assert before.advance(only).utility_change(before) == pytest.approx(0.4)
        assert before.advance(telemetry).utility_change(before) == 0.0

    def test_unusable_loss_changes_nothing(self) -> None:
        track = RunningLoss(level=2.0, change=0.5)
        assert track.advance(ReleasedValue(value=float("nan"), std=0.1)) is track
        assert track.advance(ReleasedValue(value=1.0, std=float("inf"))) is track
        assert track.advance(None) is track

    @pytest.mark.parametrize("damage", [{"signal": ["x"]}, {"training": {"level": "a"}}])
    def test_damaged_document_is_refused(self, damage: dict[str, Any]) -> None:
        document = {**ObservationMemory.empty(1).to_dict(), **damage}
        with pytest.raises(PolicyStateMismatch):
            ObservationMemory.from_dict(document)


class TestReleasedOnly:
    @pytest.mark.parametrize(
        "name", [f.name for f in fields(WindowTelemetry) if f.name != "groups"]
    )
    def test_raw_job_field_is_refused(self, name: str) -> None:
        refuse(replace(simulated_job().telemetry, **{name: Raw(1.0)}))

    @pytest.mark.parametrize("name", [f.name for f in fields(GroupTelemetry)])
    def test_raw_group_field_is_refused(self, name: str) -> None:
        telemetry = simulated_job().telemetry
        group = replace(telemetry.groups[0], **{name: Raw("q_proj.A")})
        refuse(replace(telemetry, groups=(group, *telemetry.groups[1:])))

    @pytest.mark.parametrize("name", ["loss", "validation_loss"])
    @pytest.mark.parametrize("part", ["value", "std"])
    def test_raw_inside_a_released_value_is_refused(self, name: str, part: str) -> None:
        value: Any = ReleasedValue(**{"value": 1.0, "std": 1.0, part: Raw(1.0)})
        refuse(replace(simulated_job().telemetry, **{name: value}))

    @pytest.mark.parametrize("wrapped", [Raw(()), [], np.zeros(4)])
    def test_groups_of_another_type_are_refused(self, wrapped: Any) -> None:
        refuse(replace(simulated_job().telemetry, groups=wrapped))

    def test_wrapped_telemetry_is_refused(self) -> None:
        wrapped: Any = Raw(simulated_job().telemetry)
        refuse(wrapped)

    def test_tensor_is_refused(self) -> None:
        """An un-noised sum would arrive as a tensor."""
        import torch

        refuse(replace(simulated_job().telemetry, filter_used=torch.tensor(0.5)))  # type: ignore[arg-type]

    def test_refusal_never_shows_the_value(self) -> None:
        telemetry = replace(simulated_job().telemetry, step="secret-7")  # type: ignore[arg-type]
        with pytest.raises(TypeError) as caught:
            describe_groups(telemetry)
        assert "secret" not in str(caught.value)


def refuse(telemetry: WindowTelemetry) -> None:
    memory = ObservationMemory.empty(4)
    for call in (
        lambda: observe(telemetry, memory, actions(4)),
        lambda: memory.advance(telemetry),
        lambda: describe_groups(telemetry),
    ):
        with pytest.raises(TypeError):
            call()


def neutral(groups: int = 4) -> Any:
    from dp_core.ports import GroupActions

    return GroupActions.neutral(groups)


def test_elapsed_fraction_stays_in_the_unit_interval() -> None:
    telemetry = simulated_job().telemetry
    assert elapsed_fraction(telemetry) == 0.0
    assert elapsed_fraction(replace(telemetry, step=10**400)) == 1.0
    assert elapsed_fraction(replace(telemetry, steps_planned=0)) == 1.0
    assert elapsed_fraction(replace(telemetry, step=-5)) == 0.0

"""The seam that jobs and workers use: reserve, charge, close, settle (ledger.md 3, 8)."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from dp_core.events import Component
from dp_core.ports import JournalPosition
from service.ids import new_id
from service.ledger import fsck, repository
from service.ledger import service as ledger
from service.ledger.errors import (
    BudgetExceeded,
    ChargeRefused,
    EscrowExhausted,
    IdempotencyConflict,
    LedgerNotFound,
    PopulationNotGranted,
    ReservationClosed,
    ReservationMismatch,
    StaleEpoch,
)
from tests.service.ledger import world as w

STEP_PICO = 363154049  # q 0.01, sigma 1, order 4: a vector of the design
LIMIT_PICO = 4144610006836  # (8, 1e-6) at order 4


def budget(world: w.World, block: str = "train") -> ledger.BlockBudget:
    with world.db.reading() as session:
        view = ledger.epsilon_limits(session, world.population)
    return next(b for b in view.blocks if b.block == block)


def size(world: w.World) -> int:
    with world.db.reading() as session:
        head = repository.head_of(session, world.tenant)
        assert head is not None
        return head.size


def started(world: w.World, **plan: Any) -> str:
    job = new_id("ftjob-")
    with world.db.transaction() as session:
        w.reserve(session, world, job=job, run_plan=w.plan(**plan))
        w.start(session, job)
    return job


def charge(world: w.World, job: str, number: int, epoch: int = 1, **values: Any) -> ledger.Receipt:
    with world.db.transaction() as session:
        return ledger.charge_window(
            session, job_id=job, epoch=epoch, charge=w.window(number, epoch=epoch, **values)
        )


def close(world: w.World, job: str, number: int, epoch: int = 1) -> ledger.Receipt:
    with world.db.transaction() as session:
        return ledger.finish_window(session, job_id=job, epoch=epoch, window=number, steps_run=10)


def settle(world: w.World, job: str, state: str = "cancelled") -> ledger.Receipt:
    with world.db.transaction() as session:
        return ledger.settle(
            session, job_id=job, final_state=state, artifact_digests={}, certificate_digest=None
        )


class TestReserve:
    def test_holds_the_worst_case_of_all_steps(self, world: w.World) -> None:
        started(world)
        after = budget(world)
        assert after.limit_pico == LIMIT_PICO
        assert after.held_pico == 40 * STEP_PICO
        assert after.free_pico == LIMIT_PICO - 40 * STEP_PICO
        assert (after.spent_pico, after.epsilon_so_far) == (0, "0")

    def test_each_block_holds_its_own(self, split_world: w.World) -> None:
        started(split_world, validation=True)
        assert budget(split_world).held_pico == 40 * STEP_PICO
        held_out = budget(split_world, "validation")
        assert held_out.limit_pico == LIMIT_PICO
        assert 0 < held_out.held_pico < 40 * STEP_PICO

    def test_a_job_beyond_the_limit_is_refused_with_the_numbers_and_leaves_no_trace(
        self, world: w.World
    ) -> None:
        before = size(world)
        steps = LIMIT_PICO // STEP_PICO + 1
        with pytest.raises(BudgetExceeded) as refused:
            started(world, steps=steps, margin_steps=0)
        assert refused.value.requested_pico == steps * STEP_PICO
        assert refused.value.available_pico == LIMIT_PICO
        assert (refused.value.population_id, refused.value.block) == (world.population, "train")
        assert size(world) == before
        assert budget(world).free_pico == LIMIT_PICO

    def test_the_whole_limit_can_be_reserved_to_the_pico(self, world: w.World) -> None:
        started(world, steps=LIMIT_PICO // STEP_PICO, margin_steps=0)
        assert 0 <= budget(world).free_pico < STEP_PICO

    def test_a_repeat_gives_the_same_receipt_and_holds_once(self, world: w.World) -> None:
        job = new_id("ftjob-")
        receipts = []
        for _ in range(3):
            with world.db.transaction() as session:
                receipts.append(w.reserve(session, world, job=job))
        assert len(set(receipts)) == 1
        assert budget(world).held_pico == 40 * STEP_PICO

    def test_the_same_job_with_another_plan_is_a_conflict(self, world: w.World) -> None:
        job = started(world)
        with pytest.raises(IdempotencyConflict), world.db.transaction() as session:
            w.reserve(session, world, job=job, run_plan=w.plan(steps=10))
        assert budget(world).held_pico == 40 * STEP_PICO

    def test_without_a_grant_nothing_can_be_reserved(self, world: w.World) -> None:
        world.population = w.add_population(world, code="renal")
        with pytest.raises(PopulationNotGranted), world.db.transaction() as session:
            ledger.reserve(
                session,
                tenant_id=world.tenant,
                actor=world.submitter,
                job_id="ftjob-x",
                population_id=world.population,
                plan=w.plan().to_dict(),
                plan_digest=w.plan().digest(),
                blocks=[],
                job_limit=40,
            )

    def test_another_tenants_population_is_not_found(self, world: w.World) -> None:
        stranger = w.found(world.db)
        stranger.population = world.population
        with pytest.raises(LedgerNotFound), world.db.transaction() as session:
            w.reserve(session, stranger, job="ftjob-x")

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"plan_digest": "0" * 64}, "plan_digest"),
            ({"job_limit": 41}, "job_limit"),
            ({"blocks": []}, "blocks"),
        ],
    )
    def test_a_reservation_that_does_not_follow_from_its_plan_is_refused(
        self, world: w.World, change: dict[str, Any], field: str
    ) -> None:
        run_plan = w.plan()
        values: dict[str, Any] = {
            "plan_digest": run_plan.digest(),
            "job_limit": 40,
            "blocks": ledger.block_reserves(run_plan, 4),
        }
        with pytest.raises(ReservationMismatch) as refused, world.db.transaction() as session:
            ledger.reserve(
                session,
                tenant_id=world.tenant,
                actor=world.submitter,
                job_id="ftjob-x",
                population_id=world.population,
                plan=run_plan.to_dict(),
                **(values | change),
            )
        assert refused.value.field == field

    def test_validation_needs_the_populations_own_block(self, world: w.World) -> None:
        with pytest.raises(ReservationMismatch, match="validation"):
            started(world, validation=True)


class TestChargeWindow:
    def test_moves_escrow_to_spent_before_any_step(self, world: w.World) -> None:
        job = started(world)
        charge(world, job, 0)
        after = budget(world)
        assert (after.spent_pico, after.held_pico) == (10 * STEP_PICO, 30 * STEP_PICO)
        assert float(after.epsilon_so_far) > 0

    def test_a_lost_reply_is_repeated_with_the_same_receipt(self, world: w.World) -> None:
        job = started(world)
        receipts = {charge(world, job, 0) for _ in range(3)}
        assert len(receipts) == 1
        assert receipts.pop().reference.startswith(f"{world.tenant}/")
        assert budget(world).spent_pico == 10 * STEP_PICO

    def test_the_same_window_with_other_settings_is_a_conflict(self, world: w.World) -> None:
        job = started(world)
        charge(world, job, 0)
        with pytest.raises(IdempotencyConflict):
            charge(world, job, 0, policy_digest="cd" * 32)
        assert budget(world).spent_pico == 10 * STEP_PICO

    def test_an_older_epoch_is_refused_on_repeats_too(self, world: w.World) -> None:
        job = started(world)
        charge(world, job, 0)
        with world.db.transaction() as session:
            w.start(session, job, 2)
        with pytest.raises(StaleEpoch) as refused:
            charge(world, job, 0)
        assert (refused.value.epoch, refused.value.latest) == (1, 2)
        assert budget(world).spent_pico == 10 * STEP_PICO

    def test_without_an_attempt_nothing_is_charged(self, world: w.World) -> None:
        with world.db.transaction() as session:
            w.reserve(session, world, job="ftjob-x")
        with pytest.raises(StaleEpoch):
            charge(world, "ftjob-x", 0)

    def test_less_noise_than_the_charged_level_is_refused(self, world: w.World) -> None:
        job = started(world)
        weak = (*w.FULL_NOISE[:1], Component(id="0.q_proj.B", sensitivity="0.4", std="0.4999"))
        with pytest.raises(ChargeRefused, match="less noise"):
            charge(world, job, 0, components=weak)

    @pytest.mark.parametrize(
        ("values", "reason"),
        [
            ({"number": 1}, "next window is 0"),
            ({"number": 0, "steps": 11}, "bounds"),
            ({"number": 0, "steps": 0}, "bounds"),
            ({"number": 0, "first_step": 1}, "bounds"),
            ({"number": 0, "level": "2.000"}, "outside the plan"),
            ({"number": 0, "q": "0.001"}, "outside the plan"),
            ({"number": 0, "plan_digest": "0" * 64}, "another plan"),
            ({"number": 0, "attempt": 2}, "another attempt"),
        ],
    )
    def test_a_charge_outside_its_plan_is_refused(
        self, world: w.World, values: dict[str, Any], reason: str
    ) -> None:
        job = started(world)
        with pytest.raises(ChargeRefused, match=reason):
            charge(world, job, **values)
        assert budget(world).spent_pico == 0

    def test_the_window_before_must_be_closed_first(self, world: w.World) -> None:
        job = started(world)
        charge(world, job, 0)
        with pytest.raises(ChargeRefused, match="still open"):
            charge(world, job, 1)

    def test_no_step_beyond_steps_started_max_is_charged(self, world: w.World) -> None:
        short = w.plan(steps=10, margin_steps=5)
        job = started(world, steps=10, margin_steps=5)
        charge(world, job, 0, run_plan=short)
        close(world, job, 0)
        with pytest.raises(EscrowExhausted, match="steps_exhausted"):
            charge(world, job, 1, run_plan=short)
        charge(world, job, 1, run_plan=short, steps=5)
        assert budget(world).held_pico == 0

    def test_adaptive_jobs_stop_at_their_own_filter(self, world: w.World) -> None:
        adaptive = w.plan(mode="adaptive_sigma", steps=400, margin_steps=0, epsilon="1.6")
        job = new_id("ftjob-")
        with world.db.transaction() as session:
            w.reserve(session, world, job=job, run_plan=adaptive)
            w.start(session, job)
            own = ledger.price_of_step("0.01", "0.900", 8)
            statement = ledger.job_statement(session, job)
        assert int(statement["job_limit"]) // own < 400
        loud = (Component(id="g", sensitivity="1", std="9"),)
        number = 0
        with pytest.raises(EscrowExhausted, match="job_limit_reached"):
            while True:
                charge(world, job, number, run_plan=adaptive, level="0.900", components=loud)
                close(world, job, number)
                number += 1
        with world.db.reading() as session:
            spent = int(ledger.job_statement(session, job)["job_spent"])
        assert spent == number * 10 * own
        assert spent <= adaptive.job_limit < spent + 10 * own


class TestSchedule:
    """Fixed noise that changes: each window pays the level registered for its steps (A5)."""

    PLAN: ClassVar[dict[str, Any]] = {"schedule": (("1.000", 20), ("0.900", 20))}

    def test_it_reserves_and_charges_each_step_at_its_own_price(self, world: w.World) -> None:
        run_plan, job = w.plan(**self.PLAN), started(world, **self.PLAN)
        dearer = ledger.price_of_step("0.01", "0.900", 4)
        assert budget(world).held_pico == 20 * STEP_PICO + 20 * dearer
        for number, level in enumerate(("1.000", "1.000", "0.900", "0.900")):
            charge(world, job, number, run_plan=run_plan, level=level)
            close(world, job, number)
        assert budget(world).held_pico == 0
        assert budget(world).spent_pico == 20 * STEP_PICO + 20 * dearer
        with pytest.raises(EscrowExhausted, match="steps_exhausted"):
            charge(world, job, 4, run_plan=run_plan, level="0.900")
        with world.db.reading() as session:
            assert fsck.check_all(session) == []

    @pytest.mark.parametrize(
        ("windows", "values"),
        [
            (0, {"level": "0.900"}),
            (0, {"level": "0.900", "first_step": 0, "steps": 1}),
            (1, {"level": "0.900", "first_step": 10}),
            (2, {"level": "1.000"}),  # more noise than planned is another schedule too
        ],
    )
    def test_a_level_of_another_place_is_refused_before_anything_moves(
        self, world: w.World, windows: int, values: dict[str, Any]
    ) -> None:
        run_plan, job = w.plan(**self.PLAN), started(world, **self.PLAN)
        for number in range(windows):
            charge(world, job, number, run_plan=run_plan, level="1.000")
            close(world, job, number)
        before = budget(world).spent_pico
        with pytest.raises(ChargeRefused, match="schedule"):
            charge(world, job, windows, run_plan=run_plan, **values)
        assert budget(world).spent_pico == before

    def test_a_window_may_not_span_two_levels(self, world: w.World) -> None:
        run_plan = w.plan(schedule=(("1.000", 15), ("0.900", 25)))
        job = started(world, schedule=(("1.000", 15), ("0.900", 25)))
        charge(world, job, 0, run_plan=run_plan, level="1.000")
        close(world, job, 0)
        with pytest.raises(ChargeRefused, match="next 5 steps"):
            charge(world, job, 1, run_plan=run_plan, level="1.000")
        charge(world, job, 1, run_plan=run_plan, level="1.000", steps=5)
        close(world, job, 1)
        charge(world, job, 2, run_plan=run_plan, level="0.900")

    def test_a_redone_window_moves_along_the_schedule_and_a_repeat_does_not(
        self, world: w.World
    ) -> None:
        run_plan, job = w.plan(**self.PLAN), started(world, **self.PLAN)
        charge(world, job, 0, run_plan=run_plan, level="1.000")
        close(world, job, 0)
        paid = charge(world, job, 1, run_plan=run_plan, level="1.000")
        assert charge(world, job, 1, run_plan=run_plan, level="1.000") == paid
        with world.db.transaction() as session:
            w.start(session, job, 2)
            ledger.abandon_window(
                session, job_id=job, epoch=2, window=1, reason_code="attempt_lost"
            )
        # the redo says it begins at step 10 again; the ledger counts what was started
        with pytest.raises(ChargeRefused, match="schedule"):
            charge(world, job, 2, 2, run_plan=run_plan, level="1.000", first_step=10)
        charge(world, job, 2, 2, run_plan=run_plan, level="0.900", first_step=10)


class TestQueries:
    def test_a_query_is_paid_by_the_validation_block_alone(self, split_world: w.World) -> None:
        run_plan = w.plan(validation=True)
        job = started(split_world, validation=True)
        for _ in range(2):
            with split_world.db.transaction() as session:
                ledger.charge_query(
                    session, job_id=job, epoch=1, charge=w.query(0, run_plan=run_plan)
                )
        assert budget(split_world).spent_pico == 0
        price = ledger.price_of_step("0.02", "2.000", 4)
        assert budget(split_world, "validation").spent_pico == price

    def test_queries_out_of_order_or_beyond_the_plan_are_refused(
        self, split_world: w.World
    ) -> None:
        run_plan = w.plan(validation=True)
        job = started(split_world, validation=True)

        def ask(number: int) -> None:
            with split_world.db.transaction() as session:
                ledger.charge_query(
                    session, job_id=job, epoch=1, charge=w.query(number, run_plan=run_plan)
                )

        with pytest.raises(ChargeRefused, match="order"):
            ask(1)
        for number in range(8):
            ask(number)
        with pytest.raises(EscrowExhausted):
            ask(8)

    def test_without_a_validation_block_there_is_nothing_to_ask(self, world: w.World) -> None:
        job = started(world)
        with (
            pytest.raises(ChargeRefused, match="not reserved"),
            world.db.transaction() as session,
        ):
            charge_ = w.query(0, run_plan=w.plan(validation=True))
            ledger.charge_query(session, job_id=job, epoch=1, charge=charge_)


class TestWindowEnds:
    def test_done_is_information_and_refunds_nothing(self, world: w.World) -> None:
        job = started(world)
        charge(world, job, 0)
        assert close(world, job, 0) == close(world, job, 0)
        assert budget(world).spent_pico == 10 * STEP_PICO
        with world.db.reading() as session:
            assert ledger.open_window(session, job) is None

    def test_a_lost_window_stays_spent_and_its_redo_is_a_new_window(self, world: w.World) -> None:
        job = started(world)
        charge(world, job, 0)
        with world.db.transaction() as session:
            assert ledger.open_window(session, job) == 0
            w.start(session, job, 2)
            ledger.abandon_window(
                session, job_id=job, epoch=2, window=0, reason_code="attempt_lost"
            )
        charge(world, job, 1, epoch=2)
        assert budget(world).spent_pico == 20 * STEP_PICO
        with world.db.reading() as session:
            position = ledger.position(session, job_id=job, epoch=2)
        assert position == JournalPosition(
            attempt=2, next_chunk=2, steps_started=20, next_query=0, job_units=20
        )

    def test_a_window_that_is_not_open_cannot_end(self, world: w.World) -> None:
        job = started(world)
        with pytest.raises(ChargeRefused, match="not open"):
            close(world, job, 0)

    def test_an_older_epoch_cannot_abandon(self, world: w.World) -> None:
        job = started(world)
        charge(world, job, 0)
        with world.db.transaction() as session:
            w.start(session, job, 2)
        with pytest.raises(StaleEpoch), world.db.transaction() as session:
            ledger.abandon_window(session, job_id=job, epoch=1, window=0, reason_code="late")


class TestAttempts:
    def test_epochs_only_grow_and_the_same_start_is_repeatable(self, world: w.World) -> None:
        job = started(world)
        with world.db.transaction() as session:
            second = w.start(session, job, 3)
            assert w.start(session, job, 3) == second
        with pytest.raises(StaleEpoch), world.db.transaction() as session:
            w.start(session, job, 2)

    def test_a_settled_job_does_not_start(self, world: w.World) -> None:
        job = started(world)
        settle(world, job)
        with pytest.raises(ReservationClosed), world.db.transaction() as session:
            w.start(session, job, 2)


class TestSettle:
    def test_windows_never_started_go_back_and_started_ones_do_not(self, world: w.World) -> None:
        job = started(world)
        charge(world, job, 0)
        settle(world, job)
        after = budget(world)
        assert (after.held_pico, after.spent_pico) == (0, 10 * STEP_PICO)
        assert after.free_pico == LIMIT_PICO - 10 * STEP_PICO

    def test_an_open_window_is_abandoned_by_settle(self, world: w.World) -> None:
        job = started(world)
        charge(world, job, 0)
        settle(world, job)
        with world.db.reading() as session:
            statement = ledger.job_statement(session, job)
            assert fsck.check_all(session) == []
        assert [win["outcome"] for win in statement["windows"]] == ["abandoned"]
        assert statement["settled"]["windows"] == {"abandoned": 1, "charged": 1, "done": 0}

    def test_a_repeat_settles_once(self, world: w.World) -> None:
        job = started(world)
        assert settle(world, job) == settle(world, job)
        assert budget(world).free_pico == LIMIT_PICO

    def test_another_ending_is_a_conflict(self, world: w.World) -> None:
        job = started(world)
        settle(world, job)
        with pytest.raises(IdempotencyConflict):
            settle(world, job, "failed")

    def test_nothing_is_charged_afterwards(self, world: w.World) -> None:
        job = started(world)
        settle(world, job)
        with pytest.raises(ReservationClosed):
            charge(world, job, 0)

    def test_a_job_that_never_started_settles_in_full(self, world: w.World) -> None:
        with world.db.transaction() as session:
            w.reserve(session, world, job="ftjob-x")
        settle(world, "ftjob-x")
        assert budget(world).free_pico == LIMIT_PICO


class TestRefusals:
    def test_a_refusal_is_entered_with_its_numbers_and_costs_nothing(self, world: w.World) -> None:
        for _ in range(2):
            with world.db.transaction() as session:
                ledger.record_refusal(
                    session,
                    tenant_id=world.tenant,
                    actor=world.submitter,
                    population_id=world.population,
                    job_reference="ftjob-x",
                    needed_pico=5,
                    free_pico=4,
                )
        with world.db.reading() as session:
            entries = session.scalars(repository.visible_entries(world.tenant)).all()
        refused = [entry for entry in entries if entry.type == "reserve.refused"]
        assert len(refused) == 1
        assert '"data":{"free":"4","needed":"5"}' in refused[0].body
        assert budget(world).free_pico == LIMIT_PICO


class TestBudgetAsOf:
    def test_an_earlier_index_gives_the_earlier_balances(self, world: w.World) -> None:
        from service.ledger.views import budget_as_of

        job = started(world)
        before = charge(world, job, 0)
        settle(world, job)
        with world.db.reading() as session:
            then = budget_as_of(session, world.population, before.idx)
            now = ledger.epsilon_limits(session, world.population)
            ungranted = budget_as_of(session, world.population, 4)
        assert then.blocks[0].held_pico == 30 * STEP_PICO
        assert then.blocks[0].spent_pico == now.blocks[0].spent_pico == 10 * STEP_PICO
        assert then.blocks[0].epsilon_so_far == now.blocks[0].epsilon_so_far
        assert now.blocks[0].held_pico == 0
        assert (ungranted.limit_pico, ungranted.alpha_star) == (None, None)

"""No history of reserves, charges, crashes and settles passes a limit (P1-P5).

The million rules of the long target: make test-histories HISTORIES_ARGS='--kind rules'
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dp_core.plan import RunPlan
from service.ids import new_id
from service.ledger import fsck
from service.ledger import service as ledger
from service.ledger.errors import BudgetExceeded, ChargeRefused, EscrowExhausted, StaleEpoch
from tests.service.ledger import world as w

# Order 8: 1,630 steps at sigma 1, so that large plans are refused and small ones fit.
EPSILON = "3"


class Model:
    """What a job may have spent and hold, in steps; the whole ledger in a few lines."""

    def __init__(self, plan: RunPlan) -> None:
        self.plan, self.epoch, self.charged, self.windows = plan, 0, 0, 0
        self.open: int | None = None
        self.first: dict[int, int] = {}


class LedgerHistories(RuleBasedStateMachine):
    """Random histories against a model that counts steps."""

    jobs = Bundle("jobs")

    @initialize()
    def open_world(self) -> None:
        self.stack = ExitStack()
        directory = self.stack.enter_context(TemporaryDirectory())
        self.db = self.stack.enter_context(w.sqlite_database(Path(directory)))
        self.world = w.open_world(self.db, epsilon=EPSILON)
        with self.db.reading() as session:
            view = ledger.epsilon_limits(session, self.world.population)
        self.alpha = view.alpha_star or 0
        self.limit = view.limit_pico or 0
        self.price = ledger.price_of_step("0.01", "1.000", self.alpha)
        self.live: dict[str, Model] = {}
        self.spent_steps = 0

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            with self.db.reading() as session:
                assert fsck.check_all(session) == []
            self.stack.close()

    def free_steps(self) -> int:
        held = sum(m.plan.steps_started_max - m.charged for m in self.live.values())
        return self.limit // self.price - self.spent_steps - held

    @rule(target=jobs, steps=st.sampled_from([20, 200, 900]))
    def reserve(self, steps: int) -> str:
        job, plan = new_id("ftjob-"), w.plan(steps=steps, margin_steps=0)
        fits = plan.steps_started_max <= self.free_steps()
        try:
            with self.db.transaction() as session:
                w.reserve(session, self.world, job=job, run_plan=plan)
            assert fits
            self.live[job] = Model(plan)
        except BudgetExceeded:
            assert not fits
        return job

    @rule(job=jobs)
    def repeat_reserve(self, job: str) -> None:
        if job in self.live:
            with self.db.transaction() as session:
                w.reserve(session, self.world, job=job, run_plan=self.live[job].plan)

    @rule(job=jobs)
    def claim(self, job: str) -> None:
        model = self.live.get(job)
        if model is None:
            return
        model.epoch += 1
        with self.db.transaction() as session:
            w.start(session, job, model.epoch)
            lost = ledger.open_window(session, job)
            assert lost == model.open
            if lost is not None:
                ledger.abandon_window(
                    session, job_id=job, epoch=model.epoch, window=lost, reason_code="lost"
                )
        model.open = None

    @rule(job=jobs, steps=st.integers(1, 10), times=st.integers(1, 2), stale=st.booleans())
    def charge(self, job: str, steps: int, times: int, stale: bool) -> None:
        model = self.live.get(job)
        if model is None or model.epoch == 0:
            return
        epoch = model.epoch - 1 if stale else model.epoch
        charge = w.window(model.windows, epoch=epoch, steps=steps, run_plan=model.plan)
        fits = (
            not stale
            and model.open is None
            and model.charged + steps <= model.plan.steps_started_max
        )
        for _ in range(times):
            try:
                with self.db.transaction() as session:
                    ledger.charge_window(session, job_id=job, epoch=epoch, charge=charge)
                assert fits
            except (ChargeRefused, EscrowExhausted, StaleEpoch):
                assert not fits
        if fits:
            model.open, model.windows = model.windows, model.windows + 1
            model.charged += steps
            self.spent_steps += steps

    @rule(job=jobs)
    def finish(self, job: str) -> None:
        model = self.live.get(job)
        if model is None or model.open is None:
            return
        with self.db.transaction() as session:
            ledger.finish_window(
                session, job_id=job, epoch=model.epoch, window=model.open, steps_run=1
            )
        model.open = None

    @rule(job=consumes(jobs), times=st.integers(1, 2))
    def settle(self, job: str, times: int) -> None:
        if job not in self.live:
            return
        for _ in range(times):
            with self.db.transaction() as session:
                ledger.settle(
                    session,
                    job_id=job,
                    final_state="cancelled",
                    artifact_digests={},
                    certificate_digest=None,
                )
        del self.live[job]

    @precondition(lambda self: hasattr(self, "limit"))
    @invariant()
    def balances_equal_the_model_and_never_pass_the_limit(self) -> None:
        with self.db.reading() as session:
            block = ledger.epsilon_limits(session, self.world.population).blocks[0]
        assert block.spent_pico == self.spent_steps * self.price
        held = sum(m.plan.steps_started_max - m.charged for m in self.live.values())
        assert block.held_pico == held * self.price
        assert block.held_pico + block.spent_pico + block.free_pico == self.limit
        assert block.free_pico >= 0


TestHistories = LedgerHistories.TestCase
TestHistories.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)


class CountedHistories(LedgerHistories):
    """Counts its rules, so that a suite can hold itself to its number."""

    rules_run = 0

    @invariant()
    def a_rule_was_run(self) -> None:
        type(self).rules_run += 1


class ManyHistories(CountedHistories):
    """20,000 rules: histories of up to 200."""


@pytest.mark.ci
@pytest.mark.timeout(3600)
def test_twenty_thousand_rules() -> None:
    run_state_machine_as_test(
        ManyHistories, settings=settings(max_examples=115, stateful_step_count=200, deadline=None)
    )
    assert ManyHistories.rules_run >= 20_000

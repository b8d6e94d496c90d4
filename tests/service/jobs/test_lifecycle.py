"""The state table: every pair, and what each state tells people."""

from __future__ import annotations

from itertools import product

import pytest

from service.jobs.errors import StateConflict
from service.jobs.lifecycle import (
    CHANGES,
    CLAIMABLE,
    LEASED,
    MESSAGES,
    OPENAI_STATUS,
    TERMINAL,
    WAITING,
    Reason,
    State,
    require_change,
)

# Written out once more, independently of the table under test (service.md 7).
LEGAL = {
    "queued": {"starting", "paused", "cancelled"},
    "starting": {"running", "recovering", "failed", "cancelling", "pausing"},
    "running": {"recovering", "failed", "pausing", "cancelling", "succeeded", "budget_stopped"},
    "recovering": {"starting", "failed", "cancelled", "paused"},
    "pausing": {"paused", "failed", "cancelling", "succeeded", "budget_stopped"},
    "paused": {"queued", "cancelled"},
    "cancelling": {"cancelled"},
    "succeeded": set(),
    "budget_stopped": set(),
    "failed": set(),
    "cancelled": set(),
}


@pytest.mark.parametrize(("before", "after"), list(product(State, State)))
def test_a_pair_of_states_is_a_change_exactly_if_the_design_draws_it(
    before: State, after: State
) -> None:
    if after in LEGAL[before]:
        require_change(before, after)
    else:
        with pytest.raises(StateConflict):
            require_change(before, after)


def test_every_state_reaches_an_end() -> None:
    reaching = set(TERMINAL)
    while grown := {b for b, a in CHANGES if a in reaching} - reaching:
        reaching |= grown
    assert reaching == set(State)


def test_ends_are_where_nothing_leads_away_from() -> None:
    assert {state for state in State if not LEGAL[state]} == TERMINAL
    assert not WAITING & LEASED and CLAIMABLE < WAITING
    assert set(State) == WAITING | LEASED | TERMINAL


def test_every_state_has_an_openai_status_and_every_reason_a_message() -> None:
    assert set(OPENAI_STATUS) == set(State)
    assert set(MESSAGES) == set(Reason)

"""Two people, one limit: proposals, signatures, effect (ledger.md 16)."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from service.database import Database, now_us
from service.ids import new_person_id
from service.ledger import approvals, fsck, grants
from service.ledger import service as ledger
from service.ledger.errors import (
    LedgerNotFound,
    NotAllowedToSign,
    ProposalClosed,
    ProposalInvalid,
    SignatureInvalid,
)
from service.tenants.models import Principal
from tests.service.ledger import world as w


@pytest.fixture
def fresh(db: Database) -> w.World:
    """A registered population without any grant."""
    world = w.found(db)
    world.population = w.add_population(world)
    return world


def limit(world: w.World) -> int | None:
    with world.db.reading() as session:
        return ledger.epsilon_limits(session, world.population).limit_pico


class TestPropose:
    def test_the_limit_is_the_published_vector(self, fresh: w.World) -> None:
        shown = w.propose(fresh, fresh.population, "8", delta="1e-6", alpha_star=4)
        assert shown["limit_pico"] == "4144610006836"
        assert (shown["state"], shown["approvals"]) == ("proposed", [])
        assert limit(fresh) is None

    @pytest.mark.parametrize(("epsilon", "order"), [("8", 4), ("3", 8)])
    def test_the_default_order_follows_the_design(
        self, fresh: w.World, epsilon: str, order: int
    ) -> None:
        assert w.propose(fresh, fresh.population, epsilon, delta="1e-6")["alpha_star"] == order

    def test_the_default_delta_lies_below_one_over_patients(self, fresh: w.World) -> None:
        assert float(w.propose(fresh, fresh.population, "8")["delta"]) < 1e-5

    @pytest.mark.parametrize(
        ("terms", "field"),
        [
            ({"epsilon": "0"}, "epsilon"),
            ({"epsilon": "101"}, "epsilon"),
            ({"epsilon": "8", "delta": "1e-5"}, "delta"),
            ({"epsilon": "1", "delta": "1e-6", "alpha_star": 2}, "alpha_star"),
        ],
    )
    def test_unacceptable_terms_are_refused_by_field(
        self, fresh: w.World, terms: dict[str, Any], field: str
    ) -> None:
        with pytest.raises(ProposalInvalid) as refused:
            w.propose(fresh, fresh.population, **terms)
        assert refused.value.field == field

    def test_order_and_delta_stay_as_first_granted(self, world: w.World) -> None:
        for terms in ({"alpha_star": 5}, {"delta": "1e-7"}):
            with pytest.raises(ProposalInvalid, match="first grant"):
                w.propose(world, world.population, "9", **terms)

    def test_another_tenants_population_is_not_found(self, fresh: w.World) -> None:
        stranger = w.found(fresh.db)
        with pytest.raises(LedgerNotFound):
            w.propose(stranger, fresh.population, "8")


class TestDecide:
    def test_one_signature_moves_nothing_two_set_the_limit(self, fresh: w.World) -> None:
        shown = w.propose(fresh, fresh.population, "8", delta="1e-6")
        assert w.decide(fresh, shown, fresh.proposer)["state"] == "proposed"
        assert limit(fresh) is None
        assert w.decide(fresh, shown, fresh.second)["state"] == "effective"
        assert limit(fresh) == 4144610006836
        with fresh.db.reading() as session:
            assert fsck.check_all(session) == []

    def test_signing_again_changes_nothing(self, fresh: w.World) -> None:
        shown = w.propose(fresh, fresh.population, "8")
        for _ in range(3):
            assert w.decide(fresh, shown, fresh.proposer)["state"] == "proposed"
        assert limit(fresh) is None

    def test_two_others_without_the_proposer_are_not_enough(self, fresh: w.World) -> None:
        shown = w.propose(fresh, fresh.population, "8")
        third = list(fresh.stewards)[2]
        w.decide(fresh, shown, fresh.second)
        assert w.decide(fresh, shown, third)["state"] == "proposed"
        assert w.decide(fresh, shown, fresh.proposer)["state"] == "effective"

    def test_one_rejection_ends_it(self, fresh: w.World) -> None:
        shown = w.propose(fresh, fresh.population, "8")
        assert w.decide(fresh, shown, fresh.second, "reject")["state"] == "rejected"
        with pytest.raises(ProposalClosed, match="rejected"):
            w.decide(fresh, shown, fresh.proposer)

    def test_nobody_decides_twice_in_two_ways(self, fresh: w.World) -> None:
        shown = w.propose(fresh, fresh.population, "8")
        w.decide(fresh, shown, fresh.proposer)
        with pytest.raises(ProposalClosed, match="decided on it before"):
            w.decide(fresh, shown, fresh.proposer, "reject")

    @pytest.mark.parametrize("fault", ["key", "decision", "proposal", "origin", "text"])
    def test_a_signature_over_anything_else_is_refused(self, fresh: w.World, fault: str) -> None:
        shown = w.propose(fresh, fresh.population, "8")
        entry, decision, signer = dict(shown["entry"]), "approve", fresh.proposer
        if fault == "decision":
            decision = "reject"
        elif fault == "proposal":
            entry["leaf"] = "0" * 64
        elif fault == "origin":
            entry["origin"] = "rldp.local/other"
        elif fault == "key":
            signer = fresh.second
        signature = fresh.sign(signer, entry, decision)
        if fault == "text":
            key = fresh.stewards[fresh.proposer]
            signature = base64.b64encode(key.sign(b"approve")).decode()
        with pytest.raises(SignatureInvalid), fresh.db.transaction() as session:
            grants.decide(
                session,
                tenant_id=fresh.tenant,
                grant_id=shown["id"],
                approver=fresh.proposer,
                decision="approve",
                signature=signature,
            )
        assert limit(fresh) is None

    def test_a_steward_added_behind_the_log_cannot_sign(self, fresh: w.World) -> None:
        shown = w.propose(fresh, fresh.population, "8")
        late, key = new_person_id("usr_"), Ed25519PrivateKey.generate()
        with fresh.db.transaction() as session:
            session.add(
                Principal(
                    id=late,
                    tenant_id=fresh.tenant,
                    role="steward",
                    created_at=now_us(),
                    public_key=key.public_key().public_bytes_raw().hex(),
                )
            )
        fresh.stewards[late] = key
        with pytest.raises(NotAllowedToSign):
            w.decide(fresh, shown, late)

    def test_a_proposal_expires_after_14_days(
        self, fresh: w.World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown = w.propose(fresh, fresh.population, "8")
        later = now_us() + 14 * approvals.DAY_US + 60_000_000
        monkeypatch.setattr(approvals, "now_us", lambda: later)
        with pytest.raises(ProposalClosed, match="expired"):
            w.decide(fresh, shown, fresh.proposer)


class TestLaterGrants:
    def test_a_second_grant_raises_by_the_difference(self, world: w.World) -> None:
        w.grant(world, world.population, "9")
        assert limit(world) == 5144610006836

    def test_a_lowering_takes_free_budget_only(self, world: w.World) -> None:
        with world.db.transaction() as session:
            w.reserve(session, world, job="ftjob-x", run_plan=w.plan(steps=4000, margin_steps=0))
        w.grant(world, world.population, "6")
        assert limit(world) == 2144610006836
        shown = w.propose(world, world.population, "5")
        w.decide(world, shown, world.proposer)
        with pytest.raises(ProposalClosed, match="below what is held and spent"):
            w.decide(world, shown, world.second)
        assert limit(world) == 2144610006836
        with world.db.reading() as session:
            assert fsck.check_all(session) == []

    def test_a_proposal_overtaken_by_another_grant_is_void(self, world: w.World) -> None:
        slow = w.propose(world, world.population, "12")
        w.decide(world, slow, world.proposer)
        w.grant(world, world.population, "9")
        with pytest.raises(ProposalClosed, match="changed since"):
            w.decide(world, slow, world.second)
        assert limit(world) == 5144610006836

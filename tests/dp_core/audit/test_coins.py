"""Commit, hide, reveal (AU9-AU13, AU40, M32)."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import pickle
from typing import Any

import numpy as np
import pytest

from dp_core.audit.coins import (
    CoinSeed,
    Manifest,
    canary_ids,
    commitment_opens,
    look_steps,
    new_manifest,
    open_coins,
)
from dp_core.audit.errors import AuditInvalid, CommitmentMismatch


def manifest(canaries: int = 1000, **changes: Any) -> Manifest:
    made = new_manifest(
        kind="gradient",
        canaries=canaries,
        layout_digest="0" * 64,
        steps_planned=300,
        score="log_likelihood_ratio",
    )
    return dataclasses.replace(made, **changes)


class TestCoins:
    def test_a_coin_is_the_lowest_bit_of_the_keyed_hash(self) -> None:
        seed = bytes(range(32))
        digests = [
            hmac.new(seed, b"coin" + i.to_bytes(8, "big"), hashlib.sha256).digest()
            for i in range(64)
        ]
        assert CoinSeed(seed).coins(64).tolist() == [bool(d[31] % 2) for d in digests]

    def test_coins_are_fair_and_unrelated_to_the_ids(self) -> None:
        """5 sigma each on heads and on the rank sum over sorted ids; false alarm 1e-6."""
        coins = CoinSeed(b"\x07" * 32).coins(20_000)
        assert abs(int(coins.sum()) - 10_000) < 5 * np.sqrt(5000)
        ids = canary_ids("ab", 2000)
        rank = np.argsort(np.argsort(np.array(ids)))
        for seed in (b"\x01", b"\x02"):
            heads = CoinSeed(seed * 32).coins(2000)
            shift = rank[heads].mean() - rank[~heads].mean()
            assert abs(shift) < 5 * 2000 / np.sqrt(12) * np.sqrt(4 / 2000)

    def test_a_restored_seed_throws_the_same_coins(self) -> None:
        seed = CoinSeed.fresh()
        again = CoinSeed(bytes.fromhex(seed.reveal()))
        assert (seed.coins(500) == again.coins(500)).all()

    def test_fresh_seeds_differ(self) -> None:
        assert CoinSeed.fresh().reveal() != CoinSeed.fresh().reveal()

    @pytest.mark.parametrize("show", [repr, str, pickle.dumps, hash, lambda s: s == s, "{}".format])
    def test_a_seed_cannot_be_shown_stored_or_compared(self, show: Any) -> None:
        with pytest.raises(TypeError, match="audit code"):
            show(CoinSeed.fresh())

    def test_a_short_seed_is_refused(self) -> None:
        with pytest.raises(AuditInvalid, match="32 bytes"):
            CoinSeed(b"short")


class TestCommitment:
    def test_opens_with_the_right_seed_and_manifest_only(self) -> None:
        seed, fixed = CoinSeed.fresh(), manifest()
        commitment = seed.commitment(fixed.digest())
        coins = open_coins(commitment, fixed, seed.reveal())
        assert (coins == seed.coins(1000)).all()
        with pytest.raises(CommitmentMismatch):
            open_coins(commitment, fixed, CoinSeed.fresh().reveal())
        changed = dataclasses.replace(fixed, score="another")
        with pytest.raises(CommitmentMismatch):
            open_coins(commitment, changed, seed.reveal())

    def test_is_the_hash_of_seed_and_manifest_hash(self) -> None:
        fixed = manifest()
        expected = hashlib.sha256(b"\x05" * 32 + bytes.fromhex(fixed.digest())).hexdigest()
        assert CoinSeed(b"\x05" * 32).commitment(fixed.digest()) == expected

    @pytest.mark.parametrize("revealed", ["", "zz", "00" * 31])
    def test_what_is_no_seed_opens_nothing(self, revealed: str) -> None:
        assert not commitment_opens("0" * 64, manifest_sha256="0" * 64, revealed_seed=revealed)


class TestManifest:
    def test_survives_a_round_trip_with_its_digest(self) -> None:
        fixed = manifest()
        again = Manifest.from_dict(fixed.to_dict())
        assert again == fixed
        assert again.digest() == fixed.digest()

    def test_two_audits_share_no_canary_and_no_seed(self) -> None:
        """AU13: reused canaries were trained on before."""
        first, second = manifest(), manifest()
        assert first.construction_seed != second.construction_seed
        assert not set(first.ids) & set(second.ids)

    @pytest.mark.parametrize(("k_plus", "k_minus"), [(99, 100), (100, 101), (500, 500), (0, 0)])
    def test_thresholds_are_no_choice(self, k_plus: int, k_minus: int) -> None:
        with pytest.raises(AuditInvalid, match="floor"):
            manifest(k_plus=k_plus, k_minus=k_minus)

    @pytest.mark.parametrize(
        "changes",
        [
            {"kind": "audio"},
            {"looks": ()},
            {"looks": (2, 1)},
            {"looks": tuple(range(1, 14))},
            {"delta_audit": "0"},
            {"alpha_gate": "1"},
            {"ids": ("a",) * 1000},
        ],
    )
    def test_unacceptable_fields_are_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(AuditInvalid):
            manifest(**changes)

    def test_unknown_missing_or_contradicting_fields_are_refused(self) -> None:
        document = manifest().to_dict()
        for broken in (document | {"x": 1}, {"m": 1}, document | {"m": 999}):
            with pytest.raises(AuditInvalid):
                Manifest.from_dict(broken)


class TestLooks:
    @pytest.mark.parametrize(
        ("steps", "looks"),
        [
            (1, (1,)),
            (20, (1, 2, 5, 10, 20)),
            (300, (1, 2, 5, 10, 20, 50, 100, 200, 300)),
            (90_000, (1, 2, 5, 10, 20, 50, 100, 200, 400, 800, 1600, 90_000)),
        ],
    )
    def test_are_public_few_and_end_with_the_last_step(
        self, steps: int, looks: tuple[int, ...]
    ) -> None:
        assert look_steps(steps) == looks

    def test_need_a_step(self) -> None:
        with pytest.raises(AuditInvalid):
            look_steps(0)

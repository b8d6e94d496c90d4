"""The trainer's side of canaries: units in their own order, rows for the clip (AU11, AU15)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dp_core.audit.errors import AuditInvalid
from dp_core.audit.units import IncludedCanaries
from tests.dp_core.audit.test_canaries import CANARIES, GEOMETRY, LAYOUT, chosen


class TestIncludedCanaries:
    COINS = np.arange(CANARIES) % 3 == 0

    def test_the_trainer_sees_members_only_in_an_order_of_their_own(self) -> None:
        """A sorted order of 34 units has chance 1/34!."""
        included = IncludedCanaries(GEOMETRY, self.COINS)
        order = included.drawn(np.arange(len(included)), chosen()).canary_indices
        assert sorted(order) == np.flatnonzero(self.COINS).tolist()
        assert order.tolist() != sorted(order)
        other = IncludedCanaries(GEOMETRY, self.COINS)
        assert other.drawn(np.arange(34), chosen()).canary_indices.tolist() != order.tolist()

    def test_rows_are_the_drawn_canaries_in_float32(self) -> None:
        included, settings = IncludedCanaries(GEOMETRY, self.COINS), chosen()
        step = included.drawn(np.array([5, 0]), settings)
        for k, size in enumerate(LAYOUT.sizes):
            rows = step.rows(k, torch.zeros(3, size, dtype=torch.bfloat16))
            assert rows is not None
            assert (rows.shape, rows.dtype) == ((2, size), torch.float32)
            expected = GEOMETRY.vectors(step.canary_indices, k, settings.clip_norms[k])
            assert (rows.numpy() == expected).all()

    def test_no_draw_gives_no_rows(self) -> None:
        step = IncludedCanaries(GEOMETRY, self.COINS).drawn(np.array([], dtype=int), chosen())
        assert step.rows(0, torch.zeros(1)) is None

    def test_coins_of_another_number_are_refused(self) -> None:
        with pytest.raises(AuditInvalid):
            IncludedCanaries(GEOMETRY, self.COINS[1:])

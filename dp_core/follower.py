"""Every rank but the first: takes its slots of what rank 0 orders, and decides nothing.

A follower has no sampler, noise source, journal, policy, checkpoint or progress feed; it
takes steps under rank 0's permit and settings. It ignores stop requests: rank 0 heeds
them and dismisses it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dp_core.checkpoint import from_files
from dp_core.errors import InvariantViolation, RankLost
from dp_core.evaluation import HoldOutSum
from dp_core.mechanism import GroupLayout, StepSettings
from dp_core.plan import Performance, RunPlan
from dp_core.ports import ChunkPermit
from dp_core.ranks import Order, Ranks
from dp_core.records import Blocks
from dp_core.replica import Replica

_Window = tuple[ChunkPermit, StepSettings, tuple[float, ...]]


class Follower(Replica):
    """One other rank of a job. Construct, then `run()` once.

    Guarantee: after every order its adapters, moments and averages are bit-equal to those
    of rank 0, which is compared at every window border.
    """

    def __init__(
        self,
        *,
        plan: RunPlan,
        model: Any,
        blocks: Blocks,
        performance: Performance,
        ranks: Ranks,
    ) -> None:
        super().__init__(
            plan=plan,
            model=model,
            blocks=blocks,
            noise_source=None,
            performance=performance,
            ranks=ranks,
        )
        self.hold_out: HoldOutSum | None = None
        if plan.validation is not None and blocks.validation is not None:
            self.hold_out = HoldOutSum(
                plan=plan,
                validation=plan.validation,
                records=blocks.validation,
                performance=performance,
                ranks=ranks,
            )
        self._window: _Window | None = None

    def run(self) -> None:
        """Follows until rank 0 ends the run; the model then holds the averaged weights.

        Raises:
            RanksDiffer: another plan, record, weight or moment than another rank's.
            StepFailed: a step broke on this rank or another.
            RankLost: rank 0 failed or went silent.
        """
        self.agree_on_job()
        while (order := self.ranks.hear()).kind != "end":
            self._obey(order)
        self.engine.detach()
        if order.document["is_failed"]:
            raise RankLost("Rank 0 gave up the attempt; its own error says why.")
        self.averaged.swap_in()

    def _obey(self, order: Order) -> None:
        document = order.document
        if order.kind == "window":
            self._window = _window(document)
            self.agree_on_state()
        elif order.kind == "step" and self._window is not None:
            permit, settings, factors = self._window
            self.take_step(permit, settings, factors=factors, step_index=document["step_index"])
        elif order.kind == "evaluate" and self.hold_out is not None:
            live = self.averaged.swap_in()
            self.hold_out.noised_sum(self.model, centre=document["centre"], step=document["step"])
            self.averaged.swap_out(live)
        elif order.kind == "take_up":
            files = {"state.json": document["state"].encode(), "tensors.safetensors": order.blob}
            self.take_up(from_files(files, plan_digest=self.plan.digest()))
        else:
            raise InvariantViolation(f"The order {order.kind} has no place here.")


def window_document(
    permit: ChunkPermit, settings: StepSettings, factors: tuple[float, ...]
) -> dict[str, object]:
    """A window as an order carries it; JSON gives every float back exactly."""
    return {
        "permit": dataclasses.asdict(permit),
        "settings": dataclasses.asdict(settings),
        "factors": factors,
    }


def _window(document: Mapping[str, Any]) -> _Window:
    def tuples(values: Mapping[str, Any]) -> dict[str, Any]:
        return {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}

    fields = tuples(document["settings"])
    fields["layout"] = GroupLayout(**tuples(fields["layout"]))
    permit = ChunkPermit(**document["permit"])
    return permit, StepSettings(**fields), tuple(document["factors"])

"""Several processes on one job, started by torchrun (privacy.md 7).

    torchrun --nproc-per-node 4 -m <a worker's entry>

    ranks = from_environment()
    shard_base(model, ranks)                     # optional: large frozen bases
    if ranks.rank == 0:
        PrivateTraining(..., ranks=ranks).run()
    else:
        Follower(..., ranks=ranks).run()

Orders are JSON and bytes over gloo, sums one all-reduce a step over gloo or NCCL. A process
that ends closes its sockets, which the others notice at once; one that hangs is noticed
after the time limit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from dp_core.errors import InvariantViolation, PlanInvalid, RankLost, RanksDiffer
from dp_core.ranks import SINGLE, Order, Ranks

STEP_SECONDS = 300  # of one collective inside a step
IDLE_SECONDS = 1800  # between orders: rank 0 may wait for its journal or learn its policy
_FINGERPRINT = 32


class ProcessRanks:
    """Ranks that are processes, over two process groups.

    `orders` carries CPU tensors and waits long; `sums` carries the step's vector on its
    device and waits shortly.
    """

    def __init__(self, *, orders: dist.ProcessGroup, sums: dist.ProcessGroup) -> None:
        self._orders, self._sums = orders, sums
        self._is_over = False

    @property
    def rank(self) -> int:
        return self._orders.rank()

    @property
    def world_size(self) -> int:
        return self._orders.size()

    @contextmanager
    def _collective(self) -> Iterator[None]:
        """After a failure nobody knows what the others wait for: nothing more is sent."""
        if self._is_over:
            raise RankLost("The ranks of this job have parted; start another attempt.")
        try:
            yield
        except RuntimeError:
            self._is_over = True
            raise RankLost(
                "Another rank of this job failed or went silent. Its own error says why; "
                "start another attempt."
            ) from None

    def tell(
        self, kind: str, document: Mapping[str, object] | None = None, blob: bytes = b""
    ) -> None:
        if self.rank != 0:
            raise InvariantViolation("Rank 0 alone gives orders.")
        header = json.dumps({"kind": kind, "document": document or {}}).encode()
        with self._collective():
            self._broadcast(torch.tensor([len(header), len(blob)]))
            self._broadcast(torch.frombuffer(bytearray(header + blob), dtype=torch.uint8))

    def hear(self) -> Order:
        if self.rank == 0:
            raise InvariantViolation("Rank 0 gives orders and hears none.")
        with self._collective():
            sizes = self._broadcast(torch.zeros(2, dtype=torch.int64))
            header, blob = sizes.tolist()
            message = self._broadcast(torch.empty(header + blob, dtype=torch.uint8))
        content = message.numpy().tobytes()
        order = json.loads(content[:header])
        return Order(kind=order["kind"], document=order["document"], blob=content[header:])

    def _broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        self._orders.broadcast(tensor, 0).wait()
        return tensor

    def deal(self, draw: Callable[[], np.ndarray]) -> np.ndarray:
        if self.rank == 0:
            raw_slots = draw()
            if len(raw_slots) % self.world_size != 0:
                raise InvariantViolation("The slots of a draw must divide among the ranks.")
            self.tell("slots", {"width": raw_slots.shape[1]}, raw_slots.tobytes())
        else:
            order = self.hear()
            if order.kind != "slots":
                raise RankLost("Rank 0 gave up the step; its own error says why.")
            raw_slots = np.frombuffer(order.blob, dtype=np.int64)
            raw_slots = raw_slots.reshape(-1, order.document["width"])
        return raw_slots[self.rank :: self.world_size]

    def add_up(self, vector: torch.Tensor) -> None:
        wire = torch.cat([vector, vector.new_zeros(1)])  # last: ranks that dropped out
        try:
            with self._collective():
                self._sums.allreduce(wire).wait()
                has_failed = float(wire[-1]) != 0.0  # NaN differs too
        except RankLost:
            vector.zero_()
            raise
        if has_failed:
            self._is_over = True
            vector.zero_()
            raise RankLost("Another rank of this job failed in this step; nothing was released.")
        vector.copy_(wire[:-1])

    def drop_out(self, vector: torch.Tensor) -> None:
        mask = torch.cat([_mask_like(vector), vector.new_ones(1)])
        if mask.is_floating_point():
            mask[-1] = torch.nan
        with suppress(RankLost), self._collective():
            self._sums.allreduce(mask).wait()
        self._is_over = True
        vector.zero_()

    def agree(self, fingerprint: Callable[[], bytes]) -> None:
        mine = torch.frombuffer(bytearray(fingerprint()), dtype=torch.uint8)
        found = [torch.empty(_FINGERPRINT, dtype=torch.uint8) for _ in range(self.world_size)]
        with self._collective():
            self._orders.allgather([found], [mine]).wait()
        if any(not torch.equal(found[0], other) for other in found):
            self._is_over = True
            raise RanksDiffer(
                "The ranks of this job do not hold the same plan, records, weights or "
                "moments. Start every rank from the same inputs, versions and kind of device."
            )


def _mask_like(vector: torch.Tensor) -> torch.Tensor:
    """What makes the others' sum meaningless: NaN, or a one-time pad on whole numbers."""
    if vector.is_floating_point():
        return torch.full_like(vector, torch.nan)
    pad = np.frombuffer(os.urandom(8 * len(vector)), dtype=np.int64)
    return torch.from_numpy(pad.copy()).to(vector.device)


def from_environment(
    *, step_seconds: float = STEP_SECONDS, idle_seconds: float = IDLE_SECONDS
) -> Ranks:
    """The ranks of the process group that torchrun's variables describe; alone without them.

    With CUDA the process takes device LOCAL_RANK and sums travel over NCCL.

    Raises:
        PlanInvalid: WORLD_SIZE is set and the rest of the variables is not.
        RankLost: the other ranks did not come within `step_seconds`.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1":
        return SINGLE
    missing = [n for n in ("RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
    if missing or not world.isdigit():
        raise PlanInvalid(
            "WORLD_SIZE", "set, but not as torchrun sets it", "Start the ranks with torchrun."
        )
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=step_seconds))
        orders = dist.new_group(backend="gloo", timeout=timedelta(seconds=idle_seconds))
    except (RuntimeError, ValueError):
        raise RankLost(
            f"The {world} ranks of this job did not find each other within {step_seconds} "
            "seconds. Check MASTER_ADDR, MASTER_PORT and that every rank was started."
        ) from None
    sums = dist.group.WORLD
    if sums is None:
        raise InvariantViolation("The default process group is gone.")
    return ProcessRanks(orders=orders, sums=sums)


def shard_base(model: nn.Module, ranks: Ranks) -> None:
    """Shards the frozen base over the ranks with FSDP2; adapters stay whole (W2).

    Each transformer block is gathered when it runs and freed after it. Call it after the
    adapters are attached, before `PrivateTraining` or `Follower` is made, on every rank. From
    then on every forward pass is one of all ranks together: run `check_engine` before, or
    on all of them with the same seed.

    Raises:
        PlanInvalid: the model has no blocks that hold adapters.
    """
    if ranks.world_size == 1:
        return
    adapters = {p for p in model.parameters() if p.requires_grad}
    blocks = [
        block
        for modules in model.modules()
        if isinstance(modules, nn.ModuleList)
        for block in modules
        if any(p in adapters for p in block.parameters())
    ]
    if not blocks:
        raise PlanInvalid("shard_base", "no block of the model holds an adapter")
    device = next(iter(adapters)).device.type
    mesh = init_device_mesh(device, (ranks.world_size,))
    for part in (*blocks, model):
        fully_shard(part, mesh=mesh, ignored_params=adapters)

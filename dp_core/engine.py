"""What an engine does for a step, and the clipping both engines share.

An engine obtains per-patient gradients of one microbatch; `PatientClipper` measures, scales
and sums them. There is no other way into `RawSums` (privacy.md E8), so patients and
gradient canaries, the fused engine and its oracle, are clipped by the same lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from dp_core.clipping import (
    centred_bits,
    clip_factors,
    joint_norms,
    row_norms,
    weighted_sum,
    whitened_factors,
)
from dp_core.errors import AdapterReused, GradientMissing, InvariantViolation, PrecisionTooLow
from dp_core.lora import ClipGroup
from dp_core.mechanism import StepSettings
from dp_core.raw_sums import RawSums

# Same-shape adapters wait for each other up to this much memory, then are clipped in one
# go: ten small kernels cost more than their work. On a CPU the stack has to stay in a core's
# cache (16 adapters of 2,048 coordinates: 3.5 ms one by one, 0.4 ms stacked).
_STACK_BYTES = {"cuda": 48 * 2**20, "cpu": 2 * 2**20}
_STACK_MAX = 16


class CanaryRows(Protocol):
    """Gradient canaries of one step (audit.md): extra rows beside the patients'."""

    def rows(self, group_index: int, like: torch.Tensor) -> torch.Tensor | None:
        """(n, size) on the device of `like`, the same n for all groups; None: no canaries."""
        ...


class StepAudit(Protocol):
    """Extra units of an audit in a job's own steps, drawn and clipped as patients are.

    Why no patient loses by it: a unit is synthetic and public, it is drawn by a coin of its
    own at the patients' q, and its clipped row is a constant added to the sum. Datasets that
    differ in one patient differ as before, by that patient's clipped row: sensitivity, q,
    noise and the divisor (the public batch size) are those of a job without an audit.
    """

    @property
    def units(self) -> int:
        """How many units join the sampler's population, behind the patients."""
        ...

    def rows(self, units: np.ndarray, settings: StepSettings) -> CanaryRows:
        """The rows of the units that a step drew, numbered from 0."""
        ...

    def take_released(
        self, step_index: int, settings: StepSettings, sums: Sequence[torch.Tensor]
    ) -> None:
        """The noised sums of the step whose rows were asked for last, in front of the divisor."""
        ...

    def keep(self) -> None:
        """A window is done: what was seen of it outlives the process from now on."""
        ...


class ClippingEngine(Protocol):
    """Clipped sums of microbatches, one backward pass each.

    Per microbatch: `open`, forward and backward of the SUM of patient losses, `close`.
    """

    name: str

    def open(
        self,
        *,
        settings: StepSettings,
        slot_mask: torch.Tensor,
        rows_per_patient: int,
        sums: RawSums,
        canaries: CanaryRows | None = None,
    ) -> None:
        """Prepares for one microbatch of len(slot_mask) * rows_per_patient rows."""
        ...

    def close(self) -> None:
        """Everything of the microbatch is in the sums now, each tensor exactly once.

        Raises:
            AdapterReused, GradientMissing.
        """
        ...

    def detach(self) -> None:
        """The model is an ordinary one again."""
        ...


class PatientClipper:
    """Takes per-patient gradients tensor by tensor and adds clipped sums to `RawSums`.

    Holds a gradient no longer than its rule needs: one tensor (or one stack of same-shape
    tensors), the tensors of a pair, or everything for whitened clipping (G10).
    """

    def __init__(self, groups: Sequence[ClipGroup]) -> None:
        self.groups = tuple(groups)
        device = self.groups[0].parameters[0].device.type
        self._stack_bytes = _STACK_BYTES.get(device, 0)
        self._buffers: dict[tuple[int, ...], torch.Tensor] = {}
        self._waiting: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        self._held: dict[tuple[int, int], torch.Tensor] = {}
        self._taken: dict[tuple[int, int], int] = {}
        self._settings: StepSettings | None = None
        self._device_settings: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def open(
        self,
        *,
        settings: StepSettings,
        slot_mask: torch.Tensor,
        sums: RawSums,
        canaries: CanaryRows | None,
    ) -> None:
        if torch.get_float32_matmul_precision() != "highest":
            raise PrecisionTooLow(
                "Clipped sums need full float32 products. Leave "
                "torch.set_float32_matmul_precision at 'highest'; speed up the base model "
                "with autocast or base_dtype instead."
            )
        self._sums, self._canaries = sums, canaries
        self.patients = len(slot_mask)
        like = self.groups[0].parameters[0]
        extra = None if canaries is None else canaries.rows(0, like)
        self._extra = 0 if extra is None else len(extra)
        ones = slot_mask.new_ones(self._extra)
        self._mask = torch.cat([slot_mask, ones]).to(like.device)
        # Canaries come in another number each step: their stacks would add up.
        usual = (self.patients, len(self._mask))
        self._buffers = {key: b for key, b in self._buffers.items() if key[0] in usual}
        self._dtype = torch.promote_types(like.dtype, torch.float32)
        if settings is not self._settings:
            self._settings = settings
            self._device_settings = self._on_device(settings, like)
        self._norms = torch.zeros(
            len(self.groups), len(self._mask), dtype=self._dtype, device=like.device
        )
        self._taken = {
            (k, i): 0 for k, group in enumerate(self.groups) for i in range(len(group.parameters))
        }
        self._waiting.clear()
        self._held.clear()

    def _on_device(
        self, settings: StepSettings, like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        def column(values: Sequence[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=self._dtype, device=like.device)[:, None]

        quanta = [self._sums.quantum(std) or 0.0 for std in settings.noise_stds]
        return column(settings.clip_norms), column(settings.whitening_weights), column(quanta)[:, 0]

    def destination(self, group: int, tensor: int) -> torch.Tensor:
        """Where the engine writes the per-patient gradients of a tensor, float32.

        Shape (P, rows, columns) of the weight, or (P, columns, rows) where `is_swapped`: a
        tall gradient g^T u is formed as u^T g, which is several times faster on a CPU and
        changes no norm. Writing into the clipper's own buffer is what turns a bf16 product
        into the float32 numbers that are measured and summed (G11), and stacks same-shape
        tensors.

        Raises:
            AdapterReused: the tensor had its turn in this microbatch.
        """
        if self._taken.get((group, tensor), 1) != 0:
            raise AdapterReused(
                f"Group {self.groups[group].id} was used twice in one microbatch. "
                "An adapter must run exactly once; leave re-used modules without adapters."
            )
        size = self.groups[group].parameters[tensor].numel()
        if self._waits(group):
            buffer = self._norms.new_empty(len(self._mask), size)
            self._held[group, tensor] = buffer
            return self._shaped(group, tensor, buffer[: self.patients])
        shape = (len(self._mask), size)
        waiting = self._waiting.setdefault(shape, [])
        buffer = self._stack(shape)
        waiting.append((group, tensor))
        return self._shaped(group, tensor, buffer[len(waiting) - 1, : self.patients])

    def is_swapped(self, group: int, tensor: int) -> bool:
        """Whether a tensor's gradient is held columns first."""
        rows, columns = self.groups[group].parameters[tensor].shape
        return rows > columns

    def _shaped(self, group: int, tensor: int, flat: torch.Tensor) -> torch.Tensor:
        rows, columns = self.groups[group].parameters[tensor].shape
        if self.is_swapped(group, tensor):
            rows, columns = columns, rows
        return flat.view(-1, rows, columns)

    def _waits(self, group: int) -> bool:
        """Whether the group's factor needs more than one tensor."""
        assert self._settings is not None, "open() comes first"
        return self._settings.rule == "whitened" or len(self.groups[group].parameters) > 1

    def _stack(self, shape: tuple[int, int]) -> torch.Tensor:
        depth = max(1, min(_STACK_MAX, self._stack_bytes // (shape[0] * shape[1] * 4)))
        found = self._buffers.get(shape)
        if found is None or len(found) != depth or found.dtype != self._dtype:
            found = self._buffers[shape] = self._norms.new_empty(depth, *shape)
        return found

    def taken(self, group: int, tensor: int) -> None:
        """The engine has written a destination; clips whatever is complete now."""
        self._taken[group, tensor] += 1
        size = self.groups[group].parameters[tensor].numel()
        if not self._waits(group):
            shape = (len(self._mask), size)
            row = self._buffers[shape][len(self._waiting[shape]) - 1]
            self._append_canaries(group, tensor, row)
            if len(self._waiting[shape]) == len(self._buffers[shape]):
                self._flush(shape)
            return
        self._append_canaries(group, tensor, self._held[group, tensor])
        if self._settings is not None and self._settings.rule == "whitened":
            return  # its factor needs every group; close() clips
        members = [(group, i) for i in range(len(self.groups[group].parameters))]
        if all(member in self._held for member in members):
            self._clip_group(group, [self._held.pop(member) for member in members])

    def _append_canaries(self, group: int, tensor: int, rows: torch.Tensor) -> None:
        if self._extra == 0 or self._canaries is None:
            return
        extra = self._canaries.rows(group, rows)
        if extra is None or len(extra) != self._extra:
            raise InvariantViolation("Canaries must give the same number of rows per group.")
        offset = self._offset(group, tensor)
        mine = extra[:, offset : offset + rows.shape[1]].to(rows)
        if self.is_swapped(group, tensor):
            parameter = self.groups[group].parameters[tensor]
            mine = mine.reshape(-1, *parameter.shape).transpose(1, 2)
        rows[self.patients :] = mine.reshape(self._extra, -1)

    def _offset(self, group: int, tensor: int) -> int:
        return sum(p.numel() for p in self.groups[group].parameters[:tensor])

    def _flush(self, shape: tuple[int, ...]) -> None:
        """Clips a stack of same-shape groups, in one go."""
        members = self._waiting.pop(shape, [])
        if not members:
            return
        assert self._settings is not None and self._device_settings is not None
        rows = self._buffers[shape][: len(members)]
        norms = row_norms(rows)
        if len(members) == 1:
            index: slice | torch.Tensor = slice(members[0][0], members[0][0] + 1)
        else:
            index = torch.tensor([k for k, _ in members], device=rows.device)
        clips, _, quanta = self._device_settings
        factors = self._factors([rows], norms, clips[index])
        self._norms[index] = norms
        sums = weighted_sum(rows, factors, norms, quanta[index] if self._sums.is_grid else None)
        for (group, tensor), total in zip(members, sums, strict=True):
            self._add_sum(group, tensor, total)

    def _add_sum(self, group: int, tensor: int, total: torch.Tensor) -> None:
        """Adds the sum (d,) of one tensor, in the order of its weight."""
        if self.is_swapped(group, tensor):
            rows, columns = self.groups[group].parameters[tensor].shape
            total = total.view(columns, rows).t().reshape(-1)
        self._sums.add_group(group, self._offset(group, tensor), total)

    def _clip_group(self, group: int, tensors: Sequence[torch.Tensor]) -> None:
        """Clips the tensors of one group by their joint norm."""
        assert self._settings is not None and self._device_settings is not None
        each = [row_norms(rows) for rows in tensors]
        norms = joint_norms(each)
        self._norms[group] = norms
        clips = self._device_settings[0][group]
        factors = self._factors([rows[None] for rows in tensors], norms[None], clips[None])
        self._add(group, tensors, each, factors[0])

    def _factors(
        self, rows: Sequence[torch.Tensor], norms: torch.Tensor, clips: torch.Tensor
    ) -> torch.Tensor:
        """(G, P) factors of groups from norms (G, P) and clips (G, 1); `rows`: (G, P, d) each.

        Only a planted fault of the audit looks at the rows.
        """
        assert self._settings is not None
        return clip_factors(norms, clips, self._mask, self._settings.factor)

    def _add(
        self,
        group: int,
        tensors: Sequence[torch.Tensor],
        norms: Sequence[torch.Tensor],
        factors: torch.Tensor,
    ) -> None:
        assert self._device_settings is not None
        quanta = self._device_settings[2][group : group + 1] if self._sums.is_grid else None
        for i, (rows, own) in enumerate(zip(tensors, norms, strict=True)):
            total = weighted_sum(rows[None], factors[None], own[None], quanta)
            self._add_sum(group, i, total[0])

    def _clip_whitened(self) -> None:
        """One factor per patient over everything held (G9)."""
        assert self._device_settings is not None
        each = {key: row_norms(rows) for key, rows in self._held.items()}
        for k, group in enumerate(self.groups):
            self._norms[k] = joint_norms([each[k, i] for i in range(len(group.parameters))])
        assert self._settings is not None
        factors = whitened_factors(
            self._norms, self._device_settings[1], self._mask, self._settings.factor
        )
        for k, group in enumerate(self.groups):
            keys = [(k, i) for i in range(len(group.parameters))]
            self._add(k, [self._held[key] for key in keys], [each[key] for key in keys], factors)
        self._held.clear()

    def close(self) -> None:
        """Clips what still waits, adds the clip bits, checks that nothing was left out."""
        assert self._settings is not None and self._device_settings is not None
        missing = [self.groups[k].id for (k, _), count in self._taken.items() if count != 1]
        if missing:
            raise GradientMissing(
                f"Group {missing[0]} received no gradient in a microbatch. Choose target "
                "modules that every row passes through."
            )
        if self._settings.rule == "whitened":
            self._clip_whitened()
        for shape in list(self._waiting):
            self._flush(shape)
        patients = slice(0, self.patients)
        bits = centred_bits(
            self._norms[:, patients], self._device_settings[0], self._mask[patients]
        )
        self._sums.add_bits(bits)
        self._taken = {}

    @property
    def is_open(self) -> bool:
        return bool(self._taken)

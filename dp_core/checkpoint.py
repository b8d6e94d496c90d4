"""State of a run at a window border, to bytes and back (privacy.md J4, J5).

Holds released values only: weights, optimiser moments, clip references, policy state,
telemetry. Never generator state, partial sums, accountant history or patient ids. The
format is safetensors and JSON; nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from dp_core.errors import CheckpointMismatch
from dp_core.telemetry import GroupTelemetry, ReleasedValue, WindowTelemetry

FORMAT_VERSION = 1
_POLICY = "policy/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Everything a resumed attempt starts from, beside the journal."""

    plan_digest: str
    step: int
    chunk: int
    references: tuple[float, ...]
    averaging_weight: float
    telemetry: WindowTelemetry
    tensors: Mapping[str, torch.Tensor]
    policy: Mapping[str, bytes]


def to_files(snapshot: Snapshot) -> dict[str, bytes]:
    """Named blobs for a `CheckpointStore`."""
    document = {
        "format_version": FORMAT_VERSION,
        "plan_digest": snapshot.plan_digest,
        "step": snapshot.step,
        "chunk": snapshot.chunk,
        "references": list(snapshot.references),
        "averaging_weight": snapshot.averaging_weight,
        "telemetry": dataclasses.asdict(snapshot.telemetry),
    }
    files = {
        "state.json": json.dumps(document, sort_keys=True).encode(),
        "tensors.safetensors": save_tensors(
            {name: t.detach().cpu().contiguous() for name, t in snapshot.tensors.items()}
        ),
    }
    return files | {_POLICY + name: blob for name, blob in snapshot.policy.items()}


def from_files(files: Mapping[str, bytes], *, plan_digest: str) -> Snapshot:
    """Inverse of `to_files`.

    Raises:
        CheckpointMismatch: unknown format version, another plan, or unreadable parts.
    """
    try:
        document = json.loads(files["state.json"])
        version, found = document["format_version"], document["plan_digest"]
    except (KeyError, ValueError):
        raise CheckpointMismatch("The checkpoint's state cannot be read.") from None
    if version != FORMAT_VERSION:
        raise CheckpointMismatch(f"Checkpoint format {version} is not known here.")
    if found != plan_digest:
        raise CheckpointMismatch("The checkpoint belongs to another plan.")
    return Snapshot(
        plan_digest=found,
        step=document["step"],
        chunk=document["chunk"],
        references=tuple(document["references"]),
        averaging_weight=document["averaging_weight"],
        telemetry=_telemetry(document["telemetry"]),
        tensors=load_tensors(files["tensors.safetensors"]),
        policy={
            name.removeprefix(_POLICY): blob
            for name, blob in files.items()
            if name.startswith(_POLICY)
        },
    )


def _telemetry(document: dict[str, Any]) -> WindowTelemetry:
    fields = dict(document)
    fields["loss"] = _released(fields["loss"])
    fields["validation_loss"] = _released(fields["validation_loss"])
    fields["groups"] = tuple(
        GroupTelemetry(**(g | {"clip_fraction": _released(g["clip_fraction"])}))
        for g in fields["groups"]
    )
    return WindowTelemetry(**fields)


def _released(value: dict[str, float] | None) -> ReleasedValue | None:
    return None if value is None else ReleasedValue(**value)

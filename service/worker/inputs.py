"""What every process of an attempt starts from: plan, base model and records, checked when read.

Rank 0 reads it from the job's row and tells it to the others, which never ask the database.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dp_core.base_model import load_base
from dp_core.lora import attach_adapters, clip_groups
from dp_core.plan import Performance, RunPlan
from dp_core.records import Blocks, load_blocks
from dp_core.selfcheck import check_engine
from service.sealing.files import FileKey, StoredFile
from service.settings import Settings


class ModelMissing(Exception):
    """The base model's folder is not on this worker."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The same on every rank. `split_key` and the key of
    `rows` are secret and stay among the job's processes."""

    plan: RunPlan
    model_dir: Path
    rows: StoredFile = field(repr=False)
    dataset_sha256: str
    split_key: bytes = field(repr=False)

    def to_document(self) -> dict[str, object]:
        """As JSON carries it between ranks, which all lie inside the privacy boundary."""
        return {
            "plan": self.plan.to_dict(),
            "model_dir": str(self.model_dir),
            "rows": _document_of(self.rows),
            "dataset_sha256": self.dataset_sha256,
            "split_key": self.split_key.hex(),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Inputs:
        return cls(
            plan=RunPlan.from_dict(document["plan"]),
            model_dir=Path(document["model_dir"]),
            rows=_rows_of(document["rows"]),
            dataset_sha256=document["dataset_sha256"],
            split_key=bytes.fromhex(document["split_key"]),
        )


def _document_of(rows: StoredFile) -> dict[str, object]:
    key = rows.key
    return {
        "path": str(rows.path),
        "key": key and {"owner": key.owner_id, "label": key.label, "secret": key.secret.hex()},
    }


def _rows_of(document: Mapping[str, Any]) -> StoredFile:
    key = document["key"]
    return StoredFile(
        path=Path(document["path"]),
        key=key
        and FileKey(owner_id=key["owner"], label=key["label"], secret=bytes.fromhex(key["secret"])),
    )


def performance_of(settings: Settings) -> Performance:
    """What the operator set for speed and memory; beyond rounding no release depends on it."""
    return Performance(
        device="cuda" if torch.cuda.is_available() else "cpu",
        patients_per_microbatch=settings.microbatch_patients,
        base_dtype=settings.base_dtype,
        checkpointing=settings.checkpointing,
        autocast=settings.autocast,
    )


def adapted_model(inputs: Inputs, performance: Performance) -> tuple[Any, Any]:
    """The adapted model, proven on public rows before any private row is read; its tokenizer."""
    plan = inputs.plan
    if not inputs.model_dir.is_dir():
        raise ModelMissing
    base, tokenizer = load_base(
        inputs.model_dir, performance, expected_digest=plan.base_model_digest
    )
    vocabulary = int(base.config.vocab_size)
    model = attach_adapters(base, plan.adapter, seed=plan.seed, performance=performance).to(
        performance.device
    )
    check_engine(
        model,
        clip_groups(model, plan.clipping.grouping),
        vocabulary=vocabulary,
        seed=secrets.randbelow(2**31),
        performance=performance,
    )
    return model, tokenizer


def read_blocks(inputs: Inputs, tokenizer: Any) -> Blocks:
    """Training and hold-out records of the frozen dataset version."""
    plan = inputs.plan
    return load_blocks(
        inputs.rows.open,
        expected_sha256=inputs.dataset_sha256,
        tokenizer=tokenizer,
        tokens_per_row=plan.tokens_per_row,
        split_key=inputs.split_key,
        validation_fraction=plan.validation.fraction if plan.validation else None,
    )

"""Text canaries: how many a job gets, what their scores say. Torch-free (audit.md 5).

A text canary is a synthetic patient whose notes end in a secret of random tokens. Half of them,
by coins of their own, are patients of the job; after the last step the loss of every secret
under the base model is compared with its loss under the adapter. Their manifest is bound by
the gradient canaries' manifest, hence by the same commitment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dp_core.audit import bounds
from dp_core.audit.coins import CoinSeed, Manifest, new_manifest
from dp_core.audit.curve import TradeOffCurve
from dp_core.audit.errors import AuditInvalid
from dp_core.audit.figures import agree, exposure_figures, one_run_figures, roc_figures
from dp_core.audit.report import ExposureFigures, TextFigures
from dp_core.events import canonical_digest
from dp_core.plan import RunPlan

CANARIES_MIN, CANARIES_MAX = 100, 1000
SHARE = 0.02  # of the declared patients; below CANARIES_MIN canaries a job has none (AU7)
LOSS_DIFFERENCE = "loss_difference"  # the pre-registered score (AU23)
ALPHA_GATE = "0.0005"  # two kinds of canaries share the gate's level equally (AU29)


@dataclass(frozen=True, kw_only=True)
class TextLayout:
    """What canaries are cut for: with the construction seed and the base model's tokenizer
    anyone makes the same rows."""

    base_model_digest: str
    tokens_per_row: int
    rows_per_patient: int
    vocabulary: int
    special_ids: tuple[int, ...]
    start_id: int | None
    end_id: int | None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"special_ids": list(self.special_ids)}

    def digest(self) -> str:
        return canonical_digest(self.to_dict())


@dataclass(frozen=True, kw_only=True, eq=False)
class TextScores:
    """(m,) of every canary, included or not: what training took off the secret's mean loss, and
    Min-K%++ of the secret under the adapter. Higher means "was trained on"."""

    loss_drop: np.ndarray
    min_k: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """As they lie in the file of scores."""
        return {"text_loss_drop": self.loss_drop, "text_min_k": self.min_k}


@dataclass(frozen=True, kw_only=True)
class TextAudit:
    """How the text canaries of a job were made: public, a part of its saved report."""

    manifest: Manifest
    layout: TextLayout

    def to_dict(self) -> dict[str, Any]:
        return {"manifest": self.manifest.to_dict(), "layout": self.layout.to_dict()}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> TextAudit:
        """Inverse of `to_dict`.

        Raises:
            AuditInvalid: unknown, missing or contradicting fields.
        """
        try:
            told = dict(document["layout"])
            layout = TextLayout(**told | {"special_ids": tuple(told["special_ids"])})
            return cls(manifest=Manifest.from_dict(document["manifest"]), layout=layout)
        except (KeyError, TypeError):
            raise AuditInvalid("text canaries", "unknown or missing fields") from None


def canaries_of(plan: RunPlan) -> int:
    """2 % of the declared patients, at most 1,000; none where that would be fewer than 100."""
    share = int(plan.patients_public * SHARE)
    return 0 if share < CANARIES_MIN else min(share, CANARIES_MAX)


def text_manifest(plan: RunPlan, layout: TextLayout) -> Manifest:
    """Of a job with `canaries_of(plan)` text canaries, fixed before its coins (AU10)."""
    return new_manifest(
        kind="text",
        canaries=canaries_of(plan),
        layout_digest=layout.digest(),
        steps_planned=plan.steps_planned,
        score=LOSS_DIFFERENCE,
        alpha_gate=ALPHA_GATE,
    )


def text_figures(
    manifest: Manifest,
    scores: TextScores,
    is_member: np.ndarray,
    curve: TradeOffCurve,
    ledger_delta: str,
) -> tuple[TextFigures, ExposureFigures]:
    """Bounds, attack figures and exposure of one run; a canary is one unit of the ledger's claim.

    Raises:
        AuditInvalid: the coins let nobody in, or everybody.
    """
    if is_member.all() or not is_member.any():
        raise AuditInvalid("coins", "needs members and outsiders")
    run = one_run_figures(manifest, scores.loss_drop, is_member, curve, ledger_delta)
    second = bounds.auc(scores.min_k[is_member], scores.min_k[~is_member])
    figures = TextFigures(
        m=manifest.m,
        n_included=int(is_member.sum()),
        manifest_sha256=manifest.digest(),
        score=manifest.score,
        k_plus=manifest.k_plus,
        k_minus=manifest.k_minus,
        one_run=run,
        roc=roc_figures(scores.loss_drop, is_member, curve),
        min_k_auc=second.value,
    )
    return figures, exposure_figures(scores.loss_drop, is_member)


def text_differences(
    told: tuple[TextFigures | None, ExposureFigures | None],
    text: TextAudit,
    scores: TextScores,
    seed: CoinSeed,
    curve: TradeOffCurve,
    ledger_delta: str,
) -> tuple[str, ...]:
    """What a recomputation finds other than reported; empty if all agrees (AU12)."""
    manifest = text.manifest
    if manifest.layout_digest != text.layout.digest():
        return ("the text canaries were made for other rows",)
    if scores.loss_drop.shape != (manifest.m,) or scores.min_k.shape != (manifest.m,):
        return ("the scores of the text canaries",)
    is_member = seed.coins(manifest.m, kind="text")
    now = text_figures(manifest, scores, is_member, curve, ledger_delta)
    return () if agree(told, now) else ("the figures of the text canaries",)

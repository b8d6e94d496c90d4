"""T2 in the service: coins sealed and committed before the first charge, revealed at the end.

Every attempt of a job has the same coins. Where they are lost, or the job began without
them, the job goes on without canaries and its audit stays that of the pre-flight, which
says of itself that the run was not attacked.
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dp_core.audit.coins import CoinSeed, Manifest
from dp_core.audit.errors import AuditError, AuditInvalid
from dp_core.audit.in_job import FinishedAudit, InJobAudit, JobFacts, manifest_of
from dp_core.audit.report import PositiveControl
from dp_core.audit.text_canaries import TextCanaries, text_layout
from dp_core.audit.text_figures import TextAudit, canaries_of, text_manifest
from dp_core.events import canonical_json
from dp_core.lora import clip_groups, layout_of
from dp_core.mechanism import GroupLayout
from dp_core.plan import Performance, RunPlan
from dp_core.records import Blocks
from service.database import Database
from service.jobs.runtime import Work, commit_audit
from service.ledger import service as ledger
from service.ledger.service import Commitment
from service.worker.sealed import SealedPieces

COINS, WINDOWS = "coins", "windows"


@dataclass(frozen=True, kw_only=True, eq=False)
class RunAudit:
    """The audit of a job's own steps, and where the ledger holds its commitment."""

    steps: InJobAudit
    reference: str
    text: TextCanaries | None

    def with_canaries(self, blocks: Blocks) -> Blocks:
        """The records, with the text canaries that take part among the training's patients."""
        if self.text is None:
            return blocks
        patients = self.text.patients(self.steps.text_members)
        training = blocks.training.with_public_patients(patients, np.random.default_rng())
        return dataclasses.replace(blocks, training=training)

    def finish(
        self,
        work: Work,
        model: Any,
        performance: Performance,
        *,
        steps_started: int,
        controls: tuple[PositiveControl, ...],
        code_commit: str,
        image_digest: str | None,
    ) -> FinishedAudit:
        """The report with the seed in it. Nothing of the job may be charged afterwards.

        `model` holds the weights that are released.
        """
        started = time.perf_counter()
        text_scores = None if self.text is None else self.text.scores(model, performance)
        self.steps.seconds += time.perf_counter() - started
        return self.steps.finish(
            JobFacts(
                job_id=work.job_id,
                steps_started=steps_started,
                preregistered_at=self.reference,
                head=self.reference,
                controls=controls,
                is_preflight_silent=True,  # or this attempt had ended before its first window
                code_commit=code_commit,
                image_digest=image_digest,
            ),
            text_scores,
        )


def open_run_audit(
    db: Database, work: Work, plan: RunPlan, model: Any, tokenizer: Any, *, with_text: bool
) -> RunAudit | None:
    """Canaries for the steps of this attempt; None where the job has to do without.

    `with_text`: text canaries too, where the job has patients enough and has not begun.

    Raises:
        FencedOut: the attempt no longer owns the job.
    """
    layout = layout_of(clip_groups(model, plan.clipping.grouping))
    root = Path(work.job_dir) / "audit-run"
    coins = _pieces(work, root / COINS)
    made = _committed(db, work.job_id)
    try:
        if made is None:
            text = _new_text(plan, tokenizer) if with_text else None
            made = _commit(db, work, plan, layout, coins, text)
            if made is None:
                return None
        manifest, seed, text = _restored(coins)
        if seed.commitment(manifest.digest()) != made.commitment:
            return None
        canaries = (
            None
            if text is None
            else TextCanaries(text.manifest, text_layout(plan, tokenizer), tokenizer)
        )
        steps = InJobAudit(
            plan=plan,
            layout=layout,
            manifest=manifest,
            seed=seed,
            pieces=_pieces(work, root / WINDOWS),
            text=text,
        )
    except AuditError:
        return None
    return RunAudit(steps=steps, reference=made.reference, text=canaries)


def _new_text(plan: RunPlan, tokenizer: Any) -> TextAudit | None:
    """None where patients are too few for it, or the vocabulary is (AU7)."""
    if canaries_of(plan) == 0:
        return None
    layout = text_layout(plan, tokenizer)
    text = TextAudit(manifest=text_manifest(plan, layout), layout=layout)
    try:
        TextCanaries(text.manifest, layout, tokenizer)
    except AuditInvalid:
        return None
    return text


def _pieces(work: Work, directory: Path) -> SealedPieces:
    return SealedPieces(directory, split_key=work.split_key, job_id=work.job_id)


def _committed(db: Database, job_id: str) -> Commitment | None:
    with db.reading() as session:
        return ledger.commitment_of(session, job_id)


def _commit(
    db: Database,
    work: Work,
    plan: RunPlan,
    layout: GroupLayout,
    coins: SealedPieces,
    text: TextAudit | None,
) -> Commitment | None:
    """Fresh coins, sealed first: a commitment whose seed is lost commits to nothing."""
    with db.reading() as session:
        if ledger.position(session, job_id=work.job_id, epoch=work.epoch).next_chunk:
            return None  # it was begun without canaries
    manifest = manifest_of(plan, layout, text=None if text is None else text.manifest)
    seed, digest = CoinSeed.fresh(), manifest.digest()
    told = {"manifest": manifest.to_dict(), "seed": seed.reveal()}
    if text is not None:
        told["text"] = text.to_dict()
    coins.save(COINS, canonical_json(told))
    made = Commitment(
        commitment=seed.commitment(digest), manifest_sha256=digest, canaries=manifest.m
    )
    commit_audit(db, work.job_id, work.epoch, made)
    return _committed(db, work.job_id)


def _restored(coins: SealedPieces) -> tuple[Manifest, CoinSeed, TextAudit | None]:
    """Raises AuditError where the coins are lost or were changed."""
    content = coins.load().get(COINS)
    if content is None:
        raise AuditInvalid("coins", "lost")
    told = json.loads(content)
    text = TextAudit.from_dict(told["text"]) if "text" in told else None
    return Manifest.from_dict(told["manifest"]), CoinSeed(bytes.fromhex(told["seed"])), text

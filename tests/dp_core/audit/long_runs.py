"""A thousand correct jobs through the gate: how often does a right mechanism get FAIL (AU38)?

    make test-alarms                                    all 1,000, goes on where it stopped
    make test-alarms ALARMS_ARGS='--seeds 0:100 --minutes 20'

A job is `PrivateTraining` on a tiny model, 20 steps, up to 1,000 canaries among its patients: the
real sampler, clip, noise and optimiser, under a policy that moves clips and shares at random.
Only the sources of chance are seeded. Epsilon is 1, 2, 4 or 8 by turns. The gate is the whole
decision of audit.md 7 at its own levels: self-test 1e-6, Steinke and f-DP at the ledger's claim
1e-3. A seed that is done is noted in `--folder` under a digest of the code it ran.

Exit status 0: every seed of the range is done, none alarmed. 1: one alarmed. 3: out of time.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from dp_core.audit.canaries import PartitionCanaries
from dp_core.audit.coins import CoinSeed, canary_ids
from dp_core.audit.in_job import FinishedAudit
from dp_core.audit.selftest import ALARM_LEVEL
from dp_core.audit.units import IncludedCanaries
from dp_core.noise import NoiseSource, SeededSource
from dp_core.ports import GroupActions
from dp_core.records import Blocks, load_blocks
from dp_core.telemetry import WindowTelemetry
from tests.dp_core.audit.test_in_job import Job, job_plan
from tests.dp_core.conftest import SPLIT_KEY, WordTokenizer, write_version
from tests.dp_core.training_cases import Recorded
from tests.fakes import StatelessPolicy

ROOT = Path(__file__).resolve().parents[3]
EPSILONS, RUNS, PATIENTS = ("1", "2", "4", "8"), 1000, 120
MakeNoise = Callable[[int], NoiseSource]


class Wandering(StatelessPolicy):
    """Clips and shares anywhere that a policy may move them, window by window."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def propose(self, seen: WindowTelemetry) -> GroupActions:
        clip, share = self._generator.uniform(-1, 1, (2, len(seen.groups))).tolist()
        neutral = GroupActions.neutral(len(seen.groups))
        return dataclasses.replace(neutral, clip=tuple(clip), share=tuple(share))


def blocks_of(folder: Path) -> Blocks:
    path, digest = write_version(folder / "version.jsonl", PATIENTS)
    return load_blocks(
        lambda: path.open("rb"),
        expected_sha256=digest,
        tokenizer=WordTokenizer(),
        tokens_per_row=16,
        split_key=SPLIT_KEY,
        validation_fraction="0.2",
    )


class SeededJob(Job):
    """One attempt whose coins, canaries, draws, noise and policy all follow from a seed."""

    def __init__(self, blocks: Blocks, seed: int) -> None:
        plan = job_plan(target_epsilon=EPSILONS[seed % len(EPSILONS)])
        super().__init__(blocks, plan)
        public = _secret(seed, "construction").hex()
        self.seed = seed
        self.manifest = dataclasses.replace(
            self.manifest, construction_seed=public, ids=canary_ids(public, self.manifest.m)
        )

    def train(self, make_noise: MakeNoise = SeededSource) -> FinishedAudit:
        self.coins = CoinSeed(_secret(self.seed, "coins"))
        run = self.attempt(noise=make_noise(self.seed), policy=Wandering(self.seed))
        self._seed_draws(run)
        run.run()
        return self.finish()

    def _seed_draws(self, run: Recorded) -> None:
        generator = np.random.default_rng([self.seed, 1])
        audit = self.audit
        geometry: PartitionCanaries = audit._geometry
        audit._included = IncludedCanaries(geometry, audit._is_member, order=generator)
        sampler = run.training.step_runner._sampler
        assert sampler is not None
        sampler._entropy, sampler._row_entropy = generator.bytes, generator.bytes


def _secret(seed: int, purpose: str) -> bytes:
    return hashlib.sha256(f"{purpose} {seed}".encode()).digest()


def played(blocks: Blocks, seed: int, make_noise: MakeNoise = SeededSource) -> dict[str, Any]:
    """The figures of one job; `alarm`: the gate of audit.md 7 said FAIL."""
    report = SeededJob(blocks, seed).train(make_noise).saved.report
    test, run, roc = report.selftest, report.one_run, report.roc
    assert test is not None and test.min_p is not None and run is not None and roc is not None
    return {
        "seed": seed,
        "epsilon": report.ledger.epsilon,
        "alarm": report.verdict == "FAIL",
        "verdict": report.verdict,
        "reasons": list(report.reasons),
        "self_test_min_p": test.min_p,
        "steinke_p": run.p_steinke_at_ledger,
        "fdp_rejects": run.fdp_rejects,
        "fdp_bound": run.eps_lb95_fdp,
        "auc": roc.auc,
        "auc_ceiling": roc.ledger_max_auc,
    }


def code_digest() -> str:
    """Of everything whose change makes a finished seed prove nothing."""
    told = hashlib.sha256(Path(__file__).read_bytes())
    for file in sorted((ROOT / "dp_core").rglob("*.py")):
        told.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return told.hexdigest()[:12]


def _noted(path: Path) -> dict[int, dict[str, Any]]:
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["seed"]: row for row in rows}


def _played_now(seeds: Sequence[int], path: Path, until: float) -> Iterator[dict[str, Any]]:
    """Plays and notes, one line a seed; ends early when the time is over."""
    with TemporaryDirectory() as scratch:
        blocks = blocks_of(Path(scratch))
        for seed in seeds:
            if time.monotonic() > until:
                return
            row = played(blocks, seed)
            with path.open("a") as target:
                target.write(json.dumps(row, sort_keys=True) + "\n")
            yield row


def told(rows: Sequence[dict[str, Any]]) -> str:
    """The figures of all jobs of the range in five lines."""
    least = sorted(row["self_test_min_p"] for row in rows)
    verdicts = {name: sum(r["verdict"] == name for r in rows) for name in ("PASS", "INCONCLUSIVE")}
    return "\n".join(
        [
            f"{len(rows)} correct jobs: {sum(row['alarm'] for row in rows)} alarms; "
            + ", ".join(f"{count} {name}" for name, count in verdicts.items()),
            f"self-test, adjusted p (alarm below {ALARM_LEVEL:.0e}): least {least[0]:.2g}, "
            f"below .05 in {sum(p < 0.05 for p in least)}",
            f"Steinke at the ledger's claim (alarm at 1e-3): least p "
            f"{min(row['steinke_p'] for row in rows):.2g}",
            f"f-DP at the ledger's curve: {sum(row['fdp_rejects'] for row in rows)} rejections; "
            f"largest 95 % bound {max(row['fdp_bound'] for row in rows):.2f}",
            f"AUC less its ceiling: at most {max(r['auc'] - r['auc_ceiling'] for r in rows):.3f}",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.dp_core.audit.long_runs")
    parser.add_argument("--seeds", default=f"0:{RUNS}", help="FIRST:END, END not included")
    parser.add_argument("--minutes", type=float, help="begin no new job after so many")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "audit-runs")
    options = parser.parse_args(arguments)
    first, _, end = options.seeds.partition(":")
    seeds = range(int(first), int(end))
    path = options.folder / f"correct-{code_digest()}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {seed: row for seed, row in _noted(path).items() if seed in seeds}
    left = [seed for seed in seeds if seed not in done]
    print(f"{len(done)} of {len(seeds)} done before")
    minutes = float("inf") if options.minutes is None else options.minutes
    for row in _played_now(left, path, time.monotonic() + 60 * minutes):
        done[row["seed"]] = row
        if row["alarm"]:
            print(f"ALARM, seed {row['seed']}: {'; '.join(row['reasons'])}", flush=True)
        elif len(done) % 50 == 0:
            print(f"{len(done)} of {len(seeds)}", flush=True)
    if done:
        print(told(list(done.values())))
    if any(row["alarm"] for row in done.values()):
        return 1
    return 0 if len(done) == len(seeds) else 3


if __name__ == "__main__":
    sys.exit(main())

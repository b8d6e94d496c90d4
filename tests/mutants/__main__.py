"""`python -m tests.mutants`: every mutant against its killers, and the table.

Exit status 0: every mutant was killed by a test that passes on the code as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.catalogue import MUTANTS
from tests.mutants.harness import Run, copy_sources, judge, load_libraries, run_tests
from tests.mutants.mutation import Mutant


@dataclass(frozen=True, kw_only=True)
class Result:
    mutant: Mutant
    run: Run

    @property
    def is_killed(self) -> bool:
        return self.run.verdict == "failed"

    @property
    def outcome(self) -> str:
        if self.is_killed:
            return self.run.failed_test.removeprefix("tests/dp_core/")
        return "SURVIVED" if self.run.verdict == "passed" else f"BROKEN: {self.run.reason}"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    mutants = _chosen(options.only)
    if options.list:
        for m in mutants:
            print(f"{m.id:5} {m.text}")
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork shall not inherit torch's threads
    load_libraries()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = copy_sources(Path(folder))
        if not _killers_pass(copy, mutants):
            return 1
        started = time.monotonic()
        results = [_judged(copy, m, i, len(mutants), started) for i, m in enumerate(mutants)]
    seconds = time.monotonic() - started
    table = _table(results)
    print(table)
    _write(options, results, table, seconds)
    killed = sum(r.is_killed for r in results)
    rows = len({r.mutant.row for r in results})
    print(f"{killed} of {len(results)} mutants killed, {rows} rows, {seconds / 60:.1f} minutes")
    return 0 if killed == len(results) else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", action="append", default=[], help="M3 (all of a row) or M3a")
    parser.add_argument("--list", action="store_true", help="names the mutants, runs nothing")
    parser.add_argument("--json", type=Path, help="writes the results here")
    parser.add_argument("--markdown", type=Path, help="writes the table here")
    return parser.parse_args(arguments)


def _chosen(only: Sequence[str]) -> list[Mutant]:
    unknown = set(only) - {m.id for m in MUTANTS} - {m.row for m in MUTANTS}
    if unknown:
        sys.exit(f"No such mutant: {', '.join(sorted(unknown))}. See --list.")
    return [m for m in MUTANTS if not only or m.id in only or m.row in only]


def _killers_pass(copy: Path, mutants: Sequence[Mutant]) -> bool:
    """A test that fails anyway kills nothing: all of them once, without a mutation."""
    killers = list(dict.fromkeys(k for m in mutants for k in m.killers))
    print(f"{len(killers)} killers on the code as it is ...", flush=True)
    run = run_tests(copy, killers)
    if run.verdict == "passed":
        print(f"  pass in {run.seconds:.0f} s", flush=True)
        return True
    print(f"  {run.failed_test or 'pytest'}: {run.reason}")
    print((copy.parent / "output.txt").read_text("utf-8")[-3000:])
    return False


def _judged(copy: Path, mutant: Mutant, index: int, count: int, started: float) -> Result:
    result = Result(mutant=mutant, run=judge(copy, mutant))
    spent = time.monotonic() - started
    left = spent / (index + 1) * (count - index - 1)
    print(
        f"[{index + 1}/{count}, about {left / 60:.0f} min left] {mutant.id:5} "
        f"{'killed' if result.is_killed else result.outcome} ({result.run.seconds:.0f} s)",
        flush=True,
    )
    return result


def _table(results: Sequence[Result]) -> str:
    lines = ["| id | mutation | killed by | seconds |", "|---|---|---|---|"]
    for r in results:
        by = f"`{r.outcome}`" if r.is_killed else f"**{r.outcome}**"
        lines.append(f"| {r.mutant.id} | {r.mutant.text} | {by} | {r.run.seconds:.0f} |")
    return "\n".join(lines)


def _write(
    options: argparse.Namespace, results: Sequence[Result], table: str, seconds: float
) -> None:
    if options.markdown:
        options.markdown.write_text(table + "\n", "utf-8")
    if options.json:
        found = [
            {
                "id": r.mutant.id,
                "killed": r.is_killed,
                "mutation": r.mutant.text,
                "outcome": r.outcome,
                "reason": r.run.reason,
                "seconds": round(r.run.seconds, 1),
            }
            for r in results
        ]
        document = {"mutants": found, "seconds": round(seconds, 1)}
        options.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())

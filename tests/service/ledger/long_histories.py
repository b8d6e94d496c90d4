"""The long targets: thousands of simulated seeds and a million random rules, in pieces (T1, T2).

    make test-histories SEEDS=500:1500      simulated seeds 500 to 1,499, on SQLite
    make test-histories SEEDS=0:10000 HISTORIES_ARGS='--database postgresql --minutes 60'
    make test-histories SEEDS=0:300 HISTORIES_ARGS='--kind rules'
    make test-histories SEEDS=0:200 HISTORIES_ARGS='--kind faults --database postgresql'

A seed of `simulation` is one play of `Simulation`; a seed of `rules` is 20 histories of up to
200 rules of `LedgerHistories`; a seed of `faults` is two jobs whose worker processes are killed
and stopped (`tests.service.jobs.fault_runs`). Each piece of seeds has a database of its own; at
its end fsck judges the rows and, for the simulation, the standalone verifier judges the bundle.
Pieces that passed are noted in `--folder` under a digest of the code they ran: the same command
goes on where it stopped, and ranges can be shared out among processes and machines. A seed that
fails is printed with what it said and the command that plays it again.

Exit status 0: every seed of the range has passed. 1: one failed. 3: `--minutes` ended before.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import event

from service.database import Database
from service.ledger import bundle, fsck
from service.ledger.publisher import make_publisher
from service.settings import Settings
from tests.deploy.test_verify_ledger import verifier
from tests.service.jobs import fault_runs
from tests.service.ledger import world as w
from tests.service.ledger.simulation import Simulation
from tests.service.ledger.test_histories import CountedHistories

ROOT = Path(__file__).resolve().parents[3]
CODE = (
    *("dp_core", "service/ledger", "service/populations", "service/certificates"),
    *("service/database.py", "deploy/verifier"),
    *(f"tests/service/ledger/{name}.py" for name in ("simulation", "test_histories", "world")),
)
CODE_OF_FAULTS = (
    *("service/jobs", "service/worker", "service/fleet", "service/dispatcher.py"),
    *("tests/deploy/fake_worker.py", "tests/service/jobs/fault_runs.py"),
)
PIECE = {"simulation": 25, "rules": 1, "faults": 10}  # seeds; a piece is what a stop can lose
EXAMPLES, RULES_EACH = 20, 200

Play = Callable[[range, Path], int]  # seeds, scratch folder -> calls or rules made


@contextmanager
def quick_database(kind: str, folder: Path) -> Iterator[Database]:
    """Without waiting for the disk: a simulated kill loses no power."""
    with ExitStack() as stack:
        if kind == "postgresql":
            yield stack.enter_context(w.postgres_database())
            return
        db = stack.enter_context(w.sqlite_database(folder))
        event.listen(db.engine, "connect", lambda c, _: c.execute("PRAGMA synchronous=OFF"))
        db.engine.dispose()
        yield db


def play_simulations(db: Database, seeds: Sequence[int], folder: Path) -> int:
    """Plays and checks each seed, then judges the whole log; the number of entries."""
    world = w.found(db)
    for seed in seeds:
        simulation = Simulation(world, seed)
        try:
            simulation.run()
            simulation.check()
        except BaseException as failure:
            failure.add_note(f"replay with RLDP_SIM_SEED={seed}")
            raise
    with db.reading() as session:
        assert fsck.check_all(session) == []
    publisher = make_publisher(Settings(data_dir=folder), db)
    publisher.turn()
    path = folder / "bundle.zip"
    with (
        db.reading() as session,
        bundle.write_bundle(session, keys=publisher.keys, tenant_id=world.tenant) as archive,
    ):
        path.write_bytes(archive.read())
    assert verifier.main([str(path)]) == 0
    return len(verifier.read_bundle(path).entries)


def play_rules(seeds: range, folder: Path) -> int:
    """Random histories of the state machine under each seed; the number of rules run."""
    made = 0
    for number in seeds:

        class Histories(CountedHistories):
            """Counts for this seed alone."""

        run_state_machine_as_test(
            hypothesis.seed(number)(Histories),
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=RULES_EACH,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        made += Histories.rules_run
    return made


def player(kind: str, database: str) -> Play:
    if kind == "rules":
        return play_rules
    if kind == "faults":
        return lambda seeds, folder: fault_runs.play_seeds(database, seeds, folder)

    def play(seeds: range, folder: Path) -> int:
        with quick_database(database, folder) as db:
            return play_simulations(db, seeds, folder)

    return play


def code_digest(kind: str = "simulation") -> str:
    """Of everything whose change makes a passed seed prove nothing."""
    told = hashlib.sha256()
    for place in (*CODE, *(CODE_OF_FAULTS if kind == "faults" else ())):
        path = ROOT / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            told.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return told.hexdigest()[:12]


@dataclass(frozen=True)
class Record:
    """The seeds that passed, one line a piece; lines of several processes do not mix."""

    path: Path

    def passed(self) -> set[int]:
        if not self.path.exists():
            return set()
        pieces = [json.loads(line) for line in self.path.read_text().splitlines()]
        return {seed for piece in pieces for seed in range(piece["first"], piece["end"])}

    def add(self, seeds: range, made: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as target:
            told = {"first": seeds.start, "end": seeds.stop, "made": made}
            target.write(json.dumps(told) + "\n")


def pieces_of(seeds: range, passed: set[int], size: int) -> list[range]:
    """What is left of the range, in runs of neighbours of at most `size`."""
    pieces: list[range] = []
    for seed in seeds:
        if seed in passed:
            continue
        last = pieces[-1] if pieces else range(0)
        if len(last) and last.stop == seed and len(last) < size:
            pieces[-1] = range(last.start, seed + 1)
        else:
            pieces.append(range(seed, seed + 1))
    return pieces


def failures_of(play: Play, seeds: range) -> tuple[int, list[range]]:
    """What was made, and the seeds that fail alone; the whole piece if they fail only together."""
    try:
        with TemporaryDirectory() as scratch:
            return play(seeds, Path(scratch)), []
    except Exception:
        if len(seeds) == 1:
            traceback.print_exc(file=sys.stdout)
            return 0, [seeds]
        text = traceback.format_exc()
    alone = [failed for seed in seeds for failed in failures_of(play, range(seed, seed + 1))[1]]
    if not alone:
        print(text)
    return 0, alone or [seeds]


def run(options: argparse.Namespace, play: Play, record: Record) -> int:
    """Plays what is left of the range; the exit status."""
    started, failed, done, made = time.monotonic(), list[range](), 0, 0
    pieces = pieces_of(options.seeds, record.passed(), PIECE[options.kind])
    waiting = sum(map(len, pieces))
    print(f"{options.kind}: {len(options.seeds) - waiting} of {len(options.seeds)} passed before")
    for piece in pieces:
        if options.minutes is not None and time.monotonic() - started > options.minutes * 60:
            break
        count, broken = failures_of(play, piece)
        if not broken:
            record.add(piece, count)
        failed += broken
        done, made = done + len(piece), made + count
        each = (time.monotonic() - started) / done
        left = f"{each:.2f} s a seed, {(waiting - done) * each / 60:.0f} min left"
        print(f"seeds {piece.start}:{piece.stop} {'FAILED' if broken else 'passed'}; "
              f"{done} of {waiting}, {made} {UNITS[options.kind]}, {left}", flush=True)  # fmt: skip
    for seeds in failed:
        print(f"FAILED; replay with make test-histories SEEDS={seeds.start}:{seeds.stop}"
              f" HISTORIES_ARGS='--kind {options.kind} --database {options.database}'")  # fmt: skip
    return 1 if failed else 3 if done < waiting else 0


UNITS = {"simulation": "entries", "rules": "rules", "faults": "attempts"}


def seed_range(text: str) -> range:
    first, _, end = text.partition(":")
    if not (first.isdecimal() and end.isdecimal() and int(first) < int(end)):
        raise argparse.ArgumentTypeError("a range of seeds is FIRST:END, END not included")
    return range(int(first), int(end))


def main(arguments: Sequence[str] | None = None, play: Play | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.service.ledger.long_histories")
    parser.add_argument("--kind", choices=sorted(PIECE), default="simulation")
    parser.add_argument("--seeds", type=seed_range, default=range(10_000))
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--minutes", type=float, help="begin no new piece after so many")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "histories")
    options = parser.parse_args(arguments)
    if (options.kind, options.database) == ("rules", "postgresql"):
        parser.error("the rules run on SQLite")
    name = f"{options.kind}-{options.database}-{code_digest(options.kind)}.jsonl"
    made = play or player(options.kind, options.database)
    return run(options, made, Record(options.folder / name))


if __name__ == "__main__":
    sys.exit(main())

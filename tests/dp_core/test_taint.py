"""Nothing of the data leaves but noised releases (TAINT; M13, M24, M29).

A word, a patient id and a loss that cannot occur by chance are planted in the data and
looked for in everything a run writes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import pickle
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dp_core.records
import dp_core.step
from controller.observation import ObservationMemory, describe_groups, observe
from controller.reference import ReferencePolicy
from dp_core.checkpoint import to_files
from dp_core.errors import PlanInvalid, StepFailed
from dp_core.events import canonical_json
from dp_core.ports import WindowReport
from dp_core.records import Blocks, PaddedRows, load_blocks
from dp_core.telemetry import Raw, ReleasedValue
from tests.dp_core.conftest import SPLIT_KEY, WordTokenizer
from tests.dp_core.training_cases import Recorded

WORD, PATIENT = "zxqcanaryword", "zxqcanarypatient"
LOSS = 7777.5  # above the cap, so that a release cannot show it
CANARIES = (WORD, PATIENT, str(LOSS))


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Blocks:
    """Patients who all say the word, and whose losses are all the number."""
    lines = [
        json.dumps({"unit": f"{PATIENT}-{p}", "text": f"{WORD} " * (2 + p % 9)}) for p in range(60)
    ]
    content = "\n".join(lines).encode()
    path = tmp_path / "version.jsonl"
    path.write_bytes(content)
    original = dp_core.records.patient_losses

    def marked(logits: torch.Tensor, rows: PaddedRows) -> torch.Tensor:
        losses = original(logits, rows)
        return losses - losses.detach() + LOSS

    monkeypatch.setattr(dp_core.step, "patient_losses", marked)
    return load_blocks(
        partial(path.open, "rb"),
        expected_sha256=hashlib.sha256(content).hexdigest(),
        tokenizer=WordTokenizer(),
        tokens_per_row=16,
        split_key=SPLIT_KEY,
        validation_fraction="0.2",
    )


def assert_clean(written: str) -> None:
    assert not [canary for canary in CANARIES if canary in written]


def everything_kept(run: Recorded) -> str:
    """Journal, progress, telemetry, checkpoint and what the policy holds, as text."""
    files = b"".join(run.store.files.values()) if run.store.files else b""
    kept = [vars(run.journal), vars(run.progress), run.training.telemetry, run.training.policy]
    return "".join(map(repr, kept)) + files.decode("latin-1")


class TestCanaries:
    def test_a_run_writes_nothing_of_the_data(
        self,
        planted: Blocks,
        capfd: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.NOTSET)
        run = Recorded(planted)
        result = run.run()
        assert result.outcome == "completed"
        assert len(run.progress.evaluations) == 4, "the hold-out was asked too"
        assert_clean(everything_kept(run) + repr(result))
        assert_clean(caplog.text + "".join(capfd.readouterr()))

    @pytest.mark.parametrize("where", ["rows", "losses", "hold_out"])
    def test_a_failure_says_nothing_of_the_data(
        self, planted: Blocks, where: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = Recorded(planted)

        def explode(*_: Any, **__: Any) -> Any:
            raise ValueError(f"{PATIENT} wrote {WORD} with loss {LOSS}")

        if where == "losses":
            monkeypatch.setattr(dp_core.step, "patient_losses", explode)
        else:
            hold_out = run.training.hold_out
            owner = run.training.step_runner if where == "rows" else hold_out
            monkeypatch.setattr(owner._records, "batch", explode)  # type: ignore[union-attr]
        if where != "hold_out":
            run.training.hold_out = None
        with pytest.raises(StepFailed) as caught:
            run.run()
        assert_clean("".join(traceback.format_exception(caught.value)))
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__
        assert_clean(everything_kept(run))


def shown_in_a_log(raw: Any) -> None:
    logging.getLogger("dp_core").warning("drawn: %s", raw)


class TestRaw:
    @pytest.mark.parametrize(
        "use",
        [repr, str, bool, float, int, len, hash, iter, pickle.dumps, json.dumps, "{}".format],
        ids=lambda use: use.__name__,
    )
    def test_cannot_be_shown_stored_or_branched_on(self, use: Callable[[Any], Any]) -> None:
        with pytest.raises(TypeError, match=r"raw value|not JSON serializable"):
            use(Raw(np.array([1, 2])))

    def test_raises_in_a_log(self, caplog: pytest.LogCaptureFixture) -> None:
        with pytest.raises(TypeError, match="raw value"):
            shown_in_a_log(Raw(3))

    @pytest.mark.parametrize("error", [StepFailed, lambda raw: PlanInvalid("steps", raw)])
    def test_raises_in_an_error(self, error: Callable[[Any], Exception]) -> None:
        with pytest.raises(TypeError, match="raw value"):
            error(Raw(3))

    def test_raises_in_the_journal(self, blocks: Blocks) -> None:
        run = Recorded(blocks)
        run.training.hold_out = None
        run.run()
        charge = dataclasses.replace(run.journal.charges[0], chunk_index=9, steps=Raw(2))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"raw value|unsupported operand"):
            run.journal.open_chunk(charge)
        with pytest.raises(PlanInvalid, match="Raw"):
            canonical_json({"steps": Raw(2)})
        with pytest.raises(TypeError, match="raw value"):
            dataclasses.asdict(charge)

    def test_raises_in_progress_and_checkpoint(self, blocks: Blocks) -> None:
        training = Recorded(blocks).training
        training.telemetry = dataclasses.replace(training.telemetry, loss=Raw(1.5))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="raw value"):
            dataclasses.asdict(WindowReport(telemetry=training.telemetry, steps_run=2))
        with pytest.raises(TypeError, match="raw value"):
            to_files(training._snapshot())

    @pytest.mark.parametrize("field", ["loss", "filter_used"])
    def test_raises_in_a_policy(self, blocks: Blocks, field: str) -> None:
        seen = Recorded(blocks).training.telemetry
        value: Any = Raw(1.5)
        if field == "loss":
            value = ReleasedValue(value=value, std=0.1)
        tainted = dataclasses.replace(seen, **{field: value})
        policy = ReferencePolicy(groups=describe_groups(seen))
        with pytest.raises(TypeError, match="not a released number"):
            policy.propose(tainted)
        count = len(seen.groups)
        with pytest.raises(TypeError, match="not a released number"):
            observe(tainted, ObservationMemory.empty(count), np.zeros((count, 3), np.float32))

"""What the tests of the audit share: records of a job, read once."""

from __future__ import annotations

import pytest

from dp_core.records import Blocks, load_blocks
from tests.dp_core.conftest import SPLIT_KEY, WordTokenizer, write_version


@pytest.fixture(scope="package")
def shared_blocks(tmp_path_factory: pytest.TempPathFactory) -> Blocks:
    path, digest = write_version(tmp_path_factory.mktemp("blocks") / "version.jsonl", 120)
    return load_blocks(
        lambda: path.open("rb"),
        expected_sha256=digest,
        tokenizer=WordTokenizer(),
        tokens_per_row=16,
        split_key=SPLIT_KEY,
        validation_fraction="0.2",
    )

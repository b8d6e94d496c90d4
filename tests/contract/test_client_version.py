"""Which `openai` client the contract tests drive; `make test-openai-oldest` swaps it.

The oldest supported one is the first that knows every call we offer: pause and resume, files
that expire, and the check of a webhook's signature.
"""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path

import openai
from openai.resources.files import Files
from openai.resources.fine_tuning.jobs import Jobs

ROOT = Path(__file__).resolve().parents[2]


def test_the_client_is_the_one_that_was_asked_for() -> None:
    """In the run for the oldest one a path that does not come first would test nothing."""
    wanted = os.environ.get("RLDP_TEST_OPENAI")
    if wanted is None:
        assert int(openai.__version__.split(".")[0]) >= 2, "the newest, from constraints.txt"
    else:
        assert openai.__version__ == wanted


def test_it_knows_every_call_that_we_offer() -> None:
    for verb in ("create", "retrieve", "list", "list_events", "pause", "resume", "cancel"):
        assert hasattr(Jobs, verb), verb
    assert "expires_after" in inspect.signature(Files.create).parameters
    assert hasattr(openai.OpenAI, "webhooks")


def test_the_readme_names_the_oldest_that_is_tested() -> None:
    found = re.search(r"^OPENAI_OLDEST := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found is not None
    assert f"`openai` {found[1]} or newer" in (ROOT / "README.md").read_text()

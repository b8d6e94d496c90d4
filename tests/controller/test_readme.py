"""The README's snippet runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

import controller


def test_snippet_runs() -> None:
    text = (Path(controller.__file__).parent / "README.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippets) == 1
    names: dict[str, object] = {}
    exec(snippets[0], names)
    assert names["job"].is_done  # type: ignore[attr-defined]

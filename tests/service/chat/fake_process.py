"""Stands in for the process that speaks: same lines, no model.

A prompt of `crash` ends it, `fail` makes it say so, `endless` goes on until it is called off.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

cancelled: set[int] = set()
waiting: SimpleQueue[dict[str, Any] | None] = SimpleQueue()


def tell(**step: Any) -> None:
    print(json.dumps(step), flush=True)


def read() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        if "cancel" in asked:
            cancelled.add(asked["cancel"])
        else:
            waiting.put(asked)
    waiting.put(None)


def answer(asked: dict[str, Any]) -> None:
    number, prompt = asked["id"], asked["prompt"]
    if prompt == "crash":
        sys.exit(1)
    if prompt == "fail":
        tell(id=number, failed=True)
        return
    count = 0
    while prompt == "endless" and number not in cancelled:
        tell(id=number, text="x")
        count += 1
        time.sleep(0.01)
    files = sorted(path.name for path in Path(asked["adapter_dir"]).iterdir())
    for word in (prompt, " ", ",".join(files)):
        tell(id=number, text=word)
    tell(id=number, done="stop", prompt_tokens=3, completion_tokens=count + 3)


threading.Thread(target=read, daemon=True).start()
while (found := waiting.get()) is not None:
    answer(found)

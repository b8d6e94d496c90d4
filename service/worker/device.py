"""Names the device a worker computes on, without loading the libraries that use it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

QUERY = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
SECONDS_MAX = 10


def device_name() -> str:
    """`NVIDIA H100 80GB HBM3`, `2 x NVIDIA A100`, or `CPU, 16 cores`.

    What the driver lists and this process may use; whether a trainer then fits is another
    question.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "":
        return _cpu()
    try:
        told = subprocess.run(
            [*QUERY, *(("-i", visible) if visible else ())],
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return _cpu()
    return _named([line.strip() for line in told.stdout.splitlines() if line.strip()])


def _named(names: Sequence[str]) -> str:
    if not names:
        return _cpu()
    return names[0] if len(names) == 1 else f"{len(names)} x {names[0]}"


def _cpu() -> str:
    return f"CPU, {os.cpu_count()} cores"

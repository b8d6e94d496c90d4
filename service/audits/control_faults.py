"""What is wrong with the positive controls on this data folder, for those who cannot run them.

Reads the records alone: API and dispatcher have neither torch nor the audit's code at hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = "audit-controls"
FAILED_SUFFIX = ".failed.json"
RECORDS_MAX = 200


@dataclass(frozen=True, kw_only=True)
class ControlFault:
    """Of one kind of worker. Exactly one of the three is told."""

    device: str
    missing: tuple[str, ...] = ()  # planted and not found
    is_false_alarm: bool = False  # rang on the engine without a fault
    why: str = ""  # the faults could not be planted


def folder_of(data_dir: Path) -> Path:
    return data_dir / FOLDER


def control_faults(data_dir: Path) -> tuple[ControlFault, ...]:
    """Faults of the records in use: for each image and kind of device the newest one.

    A worker that starts marks its record as in use, so that those of older releases are silent.
    """
    newest: dict[tuple[str, str], tuple[float, ControlFault | None]] = {}
    for at, document in _documents(folder_of(data_dir)):
        kind = (str(document.get("image_digest")), str(document.get("device")))
        if kind not in newest or newest[kind][0] < at:
            newest[kind] = (at, _fault(document))
    return tuple(fault for _, fault in newest.values() if fault is not None)


def _documents(folder: Path) -> Iterator[tuple[float, dict[str, Any]]]:
    for path in sorted(folder.glob("*.json"))[:RECORDS_MAX]:
        try:
            document = json.loads(path.read_bytes())
            if isinstance(document, dict) and "device" in document:
                yield path.stat().st_mtime, document
        except (OSError, ValueError):
            continue  # replaced or cut off while we looked


def _fault(document: dict[str, Any]) -> ControlFault | None:
    device = str(document["device"])
    if "why" in document:
        return ControlFault(device=device, why=str(document["why"]))
    missing = tuple(str(name) for name in document.get("missing", ()))
    if missing:
        return ControlFault(device=device, missing=missing)
    if document.get("false_alarms"):
        return ControlFault(device=device, is_false_alarm=True)
    return None

"""Positive controls of this code: planted faults that the audit had to find, kept as a file.

No audit passes on the word of a self-test that was never seen to ring. A worker plants the
faults once for each code, image and kind of device (`worker/planting.py`; by hand: `rldp audit
--controls`) and writes what each reached; a report cites that file only where it is of the very
code, library versions, image and kind of device that made the report (audit.md 8).
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dp_core
from dp_core.audit.report import CORRECT_ENGINE, PositiveControl
from service.audits.control_faults import FAILED_SUFFIX, folder_of
from service.settings import Settings

FORMAT = "rldp-audit-controls/2"
LIBRARIES = ("numpy", "opacus", "peft", "scipy", "torch", "transformers")
RETRY_SECONDS = 3600  # after a try that came to no end: each costs a job up to its bound


def code_digest() -> str:
    """SHA-256 over every module of `dp_core` and the versions of the libraries under it."""
    root = Path(dp_core.__file__).parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(str(path.relative_to(root)).encode() + b"\0")
        total.update(hashlib.sha256(path.read_bytes()).digest())
    for name in LIBRARIES:
        total.update(f"{name} {importlib.metadata.version(name)}\n".encode())
    return total.hexdigest()


def controls_file(settings: Settings, device: str) -> Path:
    """One file for each code, image and kind of device: workers of several share a folder."""
    image = settings.image_digest.removeprefix("sha256:")[:16] or "no-image"
    return folder_of(settings.data_dir) / f"{code_digest()[:16]}-{image}-{device}.json"


def has_record(settings: Settings, device: str) -> bool:
    """Whether the faults were planted here, whatever came of it; marks the record as in use."""
    if _record(settings, device) is None:
        return False
    with suppress(OSError):  # a folder that only another may write
        os.utime(controls_file(settings, device))
    return True


def controls_of(settings: Settings, device: str) -> tuple[PositiveControl, ...]:
    """What this code, image and kind of device reached; none where the faults were not planted.

    A self-test that also rang without a fault is listed as `correct_engine`, which forbids a PASS.
    """
    document = _record(settings, device)
    if document is None:
        return ()
    try:
        found = [(each["name"], float(each["min_p"])) for each in document["controls"]]
        if document["false_alarms"]:
            least = min(float(each["min_p"]) for each in document["correct"])
            found.append((CORRECT_ENGINE, least))
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(PositiveControl(name=name, min_p=min_p) for name, min_p in found)


def _record(settings: Settings, device: str) -> dict[str, Any] | None:
    try:
        document = json.loads(controls_file(settings, device).read_bytes())
        told = {name: document[name] for name in _identity(settings, device)}
    except (OSError, KeyError, TypeError, ValueError):
        return None
    return document if told == _identity(settings, device) else None


def _identity(settings: Settings, device: str) -> dict[str, str | None]:
    return {
        "format": FORMAT,
        "code_sha256": code_digest(),
        "image_digest": settings.image_digest or None,
        "device": device,
    }


def write_controls(settings: Settings, device: str, document: dict[str, Any]) -> Path:
    """Writes the file whole, under the code, image and device that made it."""
    path = controls_file(settings, device)
    _write(path, {**_identity(settings, device), **document})
    _failed_file(path).unlink(missing_ok=True)
    return path


def note_failure(settings: Settings, device: str, why: str) -> None:
    """Notes a try that came to no end: `timed_out`, `killed`, or the type of an exception."""
    path = _failed_file(controls_file(settings, device))
    told = {"failed_at": int(time.time()), "why": why}
    _write(path, {**_identity(settings, device), **told})


def failed_lately(settings: Settings, device: str) -> bool:
    """Whether the last try came to no end, and another would be too early."""
    path = _failed_file(controls_file(settings, device))
    try:
        failed_at = int(json.loads(path.read_bytes())["failed_at"])
    except (OSError, KeyError, TypeError, ValueError):
        return False
    return 0 <= time.time() - failed_at < RETRY_SECONDS


@contextmanager
def only_one(settings: Settings, device: str) -> Iterator[None]:
    """Waits until no other process plants faults for the same record; ends with the process.

    On a file system without locks two may do the same work, and write the same file.
    """
    path = controls_file(settings, device).with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _failed_file(path: Path) -> Path:
    return path.with_suffix(FAILED_SUFFIX)


def _write(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".partial-{os.getpid()}")
    partial.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    partial.replace(path)

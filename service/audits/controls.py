"""Positive controls of this code: planted faults that the audit had to find, kept as a file.

No audit passes on the word of a self-test that was never seen to ring. `rldp audit controls`
plants the faults and writes what each reached; a report cites that file only where it is of
the very code, library versions and image that made the report (audit.md 8).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import dp_core
from dp_core.audit.report import PositiveControl
from service.settings import Settings

FORMAT = "rldp-audit-controls/1"
FOLDER = "audit-controls"
LIBRARIES = ("numpy", "opacus", "peft", "scipy", "torch", "transformers")


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


def controls_file(settings: Settings) -> Path:
    """One file for each code and image: workers of two images may share a folder."""
    image = settings.image_digest.removeprefix("sha256:")[:16] or "no-image"
    return settings.data_dir / FOLDER / f"{code_digest()[:16]}-{image}.json"


def controls_of(settings: Settings) -> tuple[PositiveControl, ...]:
    """The controls this code and image have passed; none where nobody has run them."""
    try:
        document = json.loads(controls_file(settings).read_bytes())
        told = (document["format"], document["code_sha256"], document["image_digest"])
        if told != (FORMAT, code_digest(), settings.image_digest or None):
            return ()
        if document["false_alarms"]:
            return ()
        return tuple(
            PositiveControl(name=each["name"], min_p=float(each["min_p"]))
            for each in document["controls"]
        )
    except (OSError, KeyError, TypeError, ValueError):
        return ()


def write_controls(settings: Settings, document: dict[str, Any]) -> Path:
    """Writes the file whole, under the code and image that made it."""
    path = controls_file(settings)
    told = {
        "format": FORMAT,
        "code_sha256": code_digest(),
        "image_digest": settings.image_digest or None,
        **document,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
    partial.rename(path)
    return path

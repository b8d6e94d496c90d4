"""Settings as the command line changes them, and the folder they live in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from service.settings import Settings


def chosen_settings(
    *, data_dir: Path | None = None, port: int | None = None, lease_seconds: int | None = None
) -> Settings:
    """The environment's settings; what was given on the command line wins."""
    given: dict[str, Any] = {}
    if data_dir is not None:
        given["data_dir"] = data_dir
    if port is not None:
        given["bind"] = f"127.0.0.1:{port}"
    if lease_seconds is not None:
        given["lease_seconds"] = lease_seconds
    return Settings(**given)


def prepare(settings: Settings) -> None:
    """Makes the data folder, readable by its owner only: patients' data lie in it."""
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.jobs_dir.mkdir(mode=0o700, exist_ok=True)

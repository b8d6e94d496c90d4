"""Options of the commands that call a running service with the caller's own key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Url = Annotated[str, typer.Option(envvar="RLDP_URL", help="The running service, without /v1.")]
KeyFile = Annotated[
    Path | None, typer.Option(help="File with your API key. Default: the variable RLDP_API_KEY.")
]
DEFAULT_URL = "http://127.0.0.1:8080"

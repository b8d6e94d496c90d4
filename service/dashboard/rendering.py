"""Turns templates into answers: one environment, static files by their digest.

Security headers, the content security policy among them, come from `service.edge`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

HERE = Path(__file__).resolve().parent
MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(frozen=True, kw_only=True)
class StaticFile:
    """A file the pages may load; the digest in its address makes it cacheable for ever."""

    name: str
    media_type: str
    digest: str
    content: bytes


@cache
def static_files() -> dict[str, StaticFile]:
    """Every static file by name; nothing else can be asked for."""
    found = {}
    for path in sorted((HERE / "static").iterdir()):
        if path.suffix in MEDIA_TYPES:
            content = path.read_bytes()
            found[path.name] = StaticFile(
                name=path.name,
                media_type=MEDIA_TYPES[path.suffix],
                digest=hashlib.sha256(content).hexdigest()[:16],
                content=content,
            )
    return found


def static_address(name: str) -> str:
    return f"/static/{name}?v={static_files()[name].digest}"


def utc_minute(time_us: int | None) -> str:
    """`23 Nov, 22:41 UTC`, or a dash."""
    return "–" if time_us is None else f"{minute(time_us)} UTC"


def minute(time_us: int) -> str:
    """The same without its zone, for tables that name it in their head."""
    return datetime.fromtimestamp(time_us / 1_000_000, UTC).strftime("%-d %b, %H:%M")


def percent(share: float) -> str:
    """`37.2 %`; small shares that are not 0 are never shown as 0."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    return f"{100 * share:.1f} %"


def span(seconds: int | None) -> str:
    """`40 s`, `12 min`, `3.5 h`, or a dash."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def short_id(text: str) -> str:
    """The end of an id, where ids of one day differ; the whole id stands in the title."""
    prefix, mark, rest = text.partition("-") if "-" in text else text.partition("_")
    return f"{prefix}{mark}…{rest[-6:]}" if len(rest) > 8 else text


RULES = {"pld_fixed_schedule": "PLD of the fixed schedule", "rdp_filter": "RDP filter"}


def rule_in_words(name: str) -> str:
    """How an epsilon is proved; a rule without words of its own keeps its name."""
    return RULES.get(name, name.replace("_", " "))


@cache
def environment() -> Environment:
    """The templates with their filters."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(minute=utc_minute, clock=minute, percent=percent, short=short_id)
    made.filters["span"] = span
    made.filters["rule"] = rule_in_words
    made.globals["static"] = static_address
    return made


def page(template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """A page, or the live part of one."""
    html = environment().get_template(template).render(**values)
    return HTMLResponse(html, status_code=status)

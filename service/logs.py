"""JSON lines on standard error, with the fields of an allow-list and nothing else.

Free text never passes: of an exception its type and the places in our code survive, since
its message may quote a row or a parameter (service.md 14.3).
"""

from __future__ import annotations

import json
import logging
import logging.config
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

FIELDS = (
    "request_id",
    "job_id",
    "attempt",
    "route",
    "method",
    "status",
    "code",
    "duration_ms",
    "exception",
    "frames",
)
FRAMES_MAX = 12


class JsonLines(logging.Formatter):
    """One object a line: time, level, logger, event (a constant of ours), allowed fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            # the template of the message, never its arguments
            "event": record.msg if isinstance(record.msg, str) else type(record.msg).__name__,
        }
        line.update({name: vars(record)[name] for name in FIELDS if name in vars(record)})
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__qualname__
            line["frames"] = frames_of(record.exc_info[2])
        return json.dumps(line, separators=(",", ":"))


def frames_of(trace: TracebackType | None) -> list[str]:
    """`file:line function` of the innermost frames; no source text and no values."""
    frames = traceback.extract_tb(trace)[-FRAMES_MAX:]
    return [f"{'/'.join(f.filename.rsplit('/', 2)[-2:])}:{f.lineno} {f.name}" for f in frames]


def logging_configuration(level: str = "INFO") -> dict[str, Any]:
    """For `logging.config.dictConfig` and as uvicorn's `log_config`.

    Switch uvicorn's own access log off with `access_log=False`: it writes raw queries.
    """
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "service.logs.JsonLines"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "root": {"handlers": ["stderr"], "level": level},
        "loggers": {
            "uvicorn.access": {"handlers": [], "level": "CRITICAL", "propagate": False},
            "uvicorn.error": {"handlers": ["stderr"], "level": level, "propagate": False},
        },
    }


def configure_logging(level: str = "INFO") -> None:
    """Sends every logger of this process through `JsonLines`."""
    logging.config.dictConfig(logging_configuration(level))

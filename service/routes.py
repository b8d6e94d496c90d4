"""Names a request's route by its template, which unlike the path holds nothing of the caller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def route_template(scope: Mapping[str, Any]) -> str | None:
    """For example `/v1/files/{file_id}`; None when no route took the request.

    FastAPI keeps the template with the prefixes of included routers in its own corner of the
    scope; the route itself knows its last part only.
    """
    corner = scope.get("fastapi")
    context = corner.get("effective_route_context") if isinstance(corner, Mapping) else None
    for candidate in (context, scope.get("route")):
        for name in ("path_format", "path"):
            template = getattr(candidate, name, None)
            if isinstance(template, str) and template:
                return template
    return None

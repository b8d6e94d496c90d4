"""One POST to a hospital's server. Of the answer only the status is used; the rest stays unread."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

from service.addresses import Rules, TargetRefused
from service.outbound import SendFailed, exchange

TIMEOUT_SECONDS = 15.0


def post(
    url: str,
    *,
    body: bytes,
    headers: Mapping[str, str],
    rules: Rules,
    timeout_seconds: float = TIMEOUT_SECONDS,
    context: ssl.SSLContext | None = None,
) -> int:
    """Sends, and returns the status. Raises TargetRefused and SendFailed as `outbound` does."""
    answer = exchange(
        "POST",
        url,
        headers=headers,
        rules=rules,
        timeout_seconds=timeout_seconds,
        body=body,
        context=context,
    )
    return answer.status


__all__ = ["SendFailed", "TargetRefused", "post"]

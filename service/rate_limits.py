"""How often a key and a hospital may ask: token buckets, shared through Redis where there is one.

A bucket holds one minute's worth of requests and refills evenly. It is kept as one number,
the time at which it would be full again (the generic cell rate algorithm), so that taking a
token is one step in memory and one script in Redis. Without Redis each API process counts
for itself; while Redis is away it does so too, since a limit must not stop the service.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import redis

from service.errors import RateLimited
from service.settings import Settings

logger = logging.getLogger(__name__)

WINDOW_SECONDS = 60
MICROSECONDS = 1_000_000
BUCKETS_MAX = 10_000
REDIS_SECONDS = 0.25
REDIS_PAUSE_SECONDS = 5.0
RETRY_SECONDS_MAX = 120  # the client waits that long and no longer
SCOPE_KEY = "rldp_rate_limit"

# ARGV: microseconds between two tokens, capacity. Answer: wait, time to full, in microseconds.
_SCRIPT = """
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local step, size = tonumber(ARGV[1]), tonumber(ARGV[2])
local full = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now) + step
local wait = full - size * step - now
if wait > 0 then return {wait, full - step - now} end
redis.call('SET', KEYS[1], string.format('%.0f', full), 'PX', math.ceil((full - now) / 1000) + 1000)
return {0, full - now}
"""


class Buckets(Protocol):
    """Takes one token of a named bucket."""

    def take(self, name: str, per_minute: int) -> tuple[int, int]:
        """(microseconds to wait, 0 if a token was taken; microseconds until it is full)."""
        ...


@dataclass
class MemoryBuckets:
    """Buckets of this process. `clock` gives seconds that never go back."""

    clock: Callable[[], float] = time.monotonic
    _full_at: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, name: str, per_minute: int) -> tuple[int, int]:
        now = int(self.clock() * MICROSECONDS)
        step = _step(per_minute)
        with self._lock:
            full = max(self._full_at.get(name, now), now) + step
            wait = full - per_minute * step - now
            if wait > 0:
                return wait, full - step - now
            if len(self._full_at) >= BUCKETS_MAX:
                self._full_at = {n: at for n, at in self._full_at.items() if at > now}
            self._full_at[name] = full
        return 0, full - now


class RedisBuckets:
    """Buckets that all API processes share; this process's own while Redis does not answer."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(
            url, socket_timeout=REDIS_SECONDS, socket_connect_timeout=REDIS_SECONDS
        )
        self._script: Any = self._redis.register_script(_SCRIPT)
        self._own = MemoryBuckets()
        self._away_until = 0.0

    def take(self, name: str, per_minute: int) -> tuple[int, int]:
        if time.monotonic() < self._away_until:
            return self._own.take(name, per_minute)
        try:
            wait, full = self._script(
                keys=[f"rldp:rate:{name}"], args=[_step(per_minute), per_minute]
            )
        except redis.RedisError as error:
            self._away_until = time.monotonic() + REDIS_PAUSE_SECONDS
            logger.warning("limits are counted here", extra={"code": type(error).__name__})
            return self._own.take(name, per_minute)
        return int(wait), int(full)


def _step(per_minute: int) -> int:
    return WINDOW_SECONDS * MICROSECONDS // per_minute


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How one bucket stands after a request."""

    policy: str  # key or tenant
    per_minute: int
    wait_us: int
    full_in_us: int

    @property
    def remaining(self) -> int:
        if self.wait_us > 0:
            return 0
        return max(0, self.per_minute - math.ceil(self.full_in_us / _step(self.per_minute)))


class RateLimits:
    """The limits of an installation. A limit of 0 is none."""

    def __init__(self, settings: Settings, buckets: Buckets | None = None) -> None:
        self._key = settings.rate_limit_per_minute
        self._tenant = settings.rate_limit_tenant_per_minute
        self._failures = settings.rate_limit_failures_per_minute
        self._buckets = buckets or make_buckets(settings)

    def admit(self, *, key_id: str, tenant_id: str) -> list[Verdict]:
        """Counts a request of a live key; how each bucket stands. See `require`."""
        told: list[Verdict] = []
        for policy, name, per_minute in (
            ("key", f"key:{key_id}", self._key),
            ("tenant", f"tenant:{tenant_id}", self._tenant),
        ):
            if per_minute > 0:
                told.append(self._take(policy, name, per_minute))
                if told[-1].wait_us > 0:
                    break
        return told

    def failed(self, address: str) -> None:
        """Counts a key that was no key, by where it came from; good keys are not affected.

        Raises:
            RateLimited: too many of them.
        """
        if self._failures > 0:
            require([self._take("failures", f"failures:{address}", self._failures)])

    def _take(self, policy: str, name: str, per_minute: int) -> Verdict:
        wait, full = self._buckets.take(name, per_minute)
        return Verdict(policy=policy, per_minute=per_minute, wait_us=wait, full_in_us=full)


def limits_of(state: Any) -> RateLimits:
    """Those of an application, made at first use from its settings."""
    if getattr(state, "rate_limits", None) is None:
        state.rate_limits = RateLimits(state.settings)
    found: RateLimits = state.rate_limits
    return found


def require(verdicts: list[Verdict]) -> None:
    """Raises RateLimited if one of the buckets was empty."""
    for verdict in verdicts:
        if verdict.wait_us > 0:
            seconds = min(RETRY_SECONDS_MAX, max(1, math.ceil(verdict.wait_us / MICROSECONDS)))
            raise RateLimited(verdict.policy, seconds)


def make_buckets(settings: Settings) -> Buckets:
    """In the broker's Redis, or the one that is named; else in this process."""
    url = settings.rate_limit_url or settings.broker_url
    return RedisBuckets(url) if url.startswith(("redis://", "rediss://")) else MemoryBuckets()


def headers_of(verdicts: list[Verdict]) -> dict[str, str]:
    """`RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-11)."""
    if not verdicts:
        return {}
    policies = ", ".join(f'"{v.policy}";q={v.per_minute};w={WINDOW_SECONDS}' for v in verdicts)
    tightest = min(verdicts, key=lambda v: v.remaining / v.per_minute)
    full_in = math.ceil(tightest.full_in_us / MICROSECONDS)
    return {
        "RateLimit-Policy": policies,
        "RateLimit": f'"{tightest.policy}";r={tightest.remaining};t={full_in}',
    }

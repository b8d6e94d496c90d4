"""Identifiers: a prefix and a time-ordered UUIDv7 in base32 (service.md 2.2)."""

from __future__ import annotations

import base64
import os
import time
import uuid

PREFIXES = frozenset(
    [
        "ftjob-",
        "file-",
        "ftevent-",
        "ftckpt_",
        "pop_",
        "ds_",
        "dsv_",
        "grant_",
        "rel_",
        "key_",
        "wk_",
        "art_",
        "req_",
        "acc_",
        "rst_",
        "wh_",
        "whd_",
        "evt_",
        "ack_",
    ]
)


def _uuid7() -> bytes:
    """RFC 9562 version 7: 48 bits of milliseconds, then random bits."""
    raw = bytearray(16)
    raw[:6] = (time.time_ns() // 1_000_000).to_bytes(6, "big")
    raw[6:] = os.urandom(10)
    raw[6] = (raw[6] & 0x0F) | 0x70
    raw[8] = (raw[8] & 0x3F) | 0x80
    return bytes(raw)


def new_id(prefix: str) -> str:
    """A fresh id such as `ftjob-01k…`; sorts by creation time within a prefix."""
    assert prefix in PREFIXES, prefix
    return prefix + base64.b32hexencode(_uuid7()).decode().rstrip("=").lower()


def new_person_id(prefix: str) -> str:
    """Ids of people and tenants are random, so that they tell no join date."""
    assert prefix in {"usr_", "tn_"}, prefix
    return prefix + base64.b32hexencode(uuid.uuid4().bytes).decode().rstrip("=").lower()

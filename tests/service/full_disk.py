"""A disk that is full: writes of sealed files fail as the kernel lets them fail."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from service.sealing.stream import SealingWriter


def fill_disk(patch: pytest.MonkeyPatch, *, after_bytes: int) -> None:
    """From now on so many plaintext bytes find room, all sealed files together."""
    room = after_bytes
    write = SealingWriter.write

    def limited(self: SealingWriter, data: Any) -> None:
        nonlocal room
        room -= len(data)
        if room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, data)

    patch.setattr(SealingWriter, "write", limited)

"""Why a stored file cannot be read or written. No text names content, size or path.

    OSError
    └── SealError
        ├── DiskFull         a write found no room
        ├── FileMissing      it is not there any more
        ├── SealBroken       changed, cut short, put together from parts, or another file
        ├── KeyDestroyed     its key was erased: nobody can read it any more
        └── KeyUnavailable   the deployment's data key is missing, or is another one

They are `OSError`s, so that whoever reads a file takes them for what they are: it cannot
be read.
"""

from __future__ import annotations


class SealError(OSError):
    """A sealed file cannot be read or written."""


class DiskFull(SealError):
    """No room is left where stored files lie."""

    def __init__(self) -> None:
        super().__init__(
            "The service's disk is full; nothing was stored. An administrator must make room."
        )


class FileMissing(SealError):
    """No file stands where the row says."""

    def __init__(self) -> None:
        super().__init__(
            "A stored file is not on the disk any more. Restore it from a backup, or upload its "
            "rows again."
        )


class SealBroken(SealError):
    """The bytes on disk are not those that were sealed under this key and for this place."""

    def __init__(self) -> None:
        super().__init__(
            "A stored file was changed or damaged outside the service. Restore it from a backup."
        )


class KeyDestroyed(SealError):
    """The key is gone on purpose; what it sealed is gone with it."""

    def __init__(self) -> None:
        super().__init__("The key of this data was destroyed; the data cannot be read any more.")


class KeyUnavailable(SealError):
    """The deployment's data key is missing or is not the one that wrapped this key."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"The deployment's data key is not usable: {problem}")


ERROR_TABLE: dict[type[Exception], tuple[int, str]] = {
    DiskFull: (503, "not_ready"),
    FileMissing: (409, "state_conflict"),
    SealBroken: (500, "internal"),
    KeyDestroyed: (409, "state_conflict"),
    KeyUnavailable: (503, "not_ready"),
}

"""Ties a process to its parent's life, then becomes the given command.

Run as a file with a bare interpreter: `python -I -S launch.py PARENT_PID COMMAND...`.
The death signal outlives `exec`, so that it is set before the command's first line and
needs no help from it. If the parent died in between, nothing is started.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
TIED = "RLDP_TIED"  # process ids of the launched ancestors, each followed by a comma


def die_with_parent(parent_pid: int) -> None:
    """Asks the kernel to kill this process when its parent ends (Linux).

    The parent is looked up again afterwards: it may have died before the request.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent_pid:
        os._exit(1)


def main() -> None:
    parent_pid, command = int(sys.argv[1]), sys.argv[2:]
    die_with_parent(parent_pid)
    # Whoever descends from here can be told by it, also in a session of its own.
    os.environ[TIED] = f"{os.environ.get(TIED, '')}{os.getpid()},"
    os.execv(command[0], command)


if __name__ == "__main__":
    main()

"""A stand-in for one rank: notes its process id and waits, as a trainer in a long step does.

`python rank_child.py FOLDER`; a file `end-RANK` in the folder holds the exit code to end with.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def main(folder: Path) -> int:
    rank = os.environ["RANK"]
    stopped: list[int] = []
    if rank == "0":
        signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    while not stopped:
        if (folder / f"end-{rank}").exists():
            return int((folder / f"end-{rank}").read_text())
        time.sleep(0.05)
    (folder / "told").touch()
    return 13


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

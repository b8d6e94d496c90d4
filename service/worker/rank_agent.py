"""torchrun for one attempt: starts the ranks of this host and tells how they ended.

    python -m service.worker.rank_agent --job ID --epoch N    in place of the single trainer
    rldp worker                                               on the other hosts of a job

Guarantee: no rank is started twice (an attempt that lost one is over), and every rank dies
with this process. One code leaves it, of the closed table; texts stay in the ranks.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NoReturn
from uuid import uuid4

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from service.settings import Settings
from service.worker import launch
from service.worker.exit_codes import ExitCode, word_of_ranks

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
TRAINER = (sys.executable, "-m", "service.worker.runner")
MEETING_SECONDS = 300  # for the agents of all hosts to find each other
LEAVING_SECONDS = 30  # for ranks that were told to stop
RUN_ID = "rldp"


def run_ranks(settings: Settings, command: Sequence[str]) -> int:
    """Runs `command` on each rank of this host until all have ended; the attempt's exit code.

    The first rank that fails ends the others.
    """
    # The launcher ties each rank to this process before the rank's first line runs.
    words = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *command]
    with tempfile.TemporaryDirectory(prefix="rldp-ranks-") as folder:
        try:
            elastic_launch(launch_config(settings, folder), words[0])(*words[1:])
        except ChildFailedError as error:
            failed = sorted(error.failures.values(), key=lambda each: each.timestamp)
            return word_of_ranks([each.exitcode for each in failed])
        except SignalException:
            return ExitCode.CANCELLED
        except RuntimeError:  # the store of another host did not answer
            return ExitCode.RANK_LOST
    return ExitCode.DONE


def launch_config(settings: Settings, log_folder: str) -> LaunchConfig:
    """torchrun's own settings for the hosts and processes of one job."""
    common: dict[str, Any] = {
        "min_nodes": settings.hosts_per_job,
        "max_nodes": settings.hosts_per_job,
        "nproc_per_node": settings.processes_per_job,
        "max_restarts": 0,
        "monitor_interval": 0.2,
        "shutdown_timeout": LEAVING_SECONDS,
        "logs_specs": DefaultLogsSpecs(log_dir=log_folder),
    }
    if settings.hosts_per_job == 1:
        # Draws and sums travel between ranks: on one host they stay on it.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        return LaunchConfig(
            **common,
            run_id=str(uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint=f"{LOOPBACK}:0",
            local_addr=LOOPBACK,
        )
    return LaunchConfig(
        **common,
        run_id=RUN_ID,
        rdzv_backend="static",
        rdzv_endpoint=settings.rendezvous,
        rdzv_configs={"rank": settings.host_rank, "timeout": MEETING_SECONDS},
    )


def help_forever(settings: Settings) -> None:
    """A host that lends its processes to the jobs of the host with rank 0, one after another."""
    while True:
        code = run_ranks(settings, TRAINER)
        logger.info("ranks ended", extra={"code": code})
        if code == ExitCode.CANCELLED:
            return
        time.sleep(1)


def main() -> NoReturn:
    """Entry point of the process that the supervisor starts."""
    parser = argparse.ArgumentParser(description="Run one attempt on several processes.")
    parser.add_argument("--job", required=True)
    parser.add_argument("--epoch", required=True)
    told = parser.parse_args()
    command = [*TRAINER, "--job", told.job, "--epoch", told.epoch]
    os._exit(run_ranks(Settings(), command))


if __name__ == "__main__":
    main()

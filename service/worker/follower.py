"""Every rank of an attempt but the first: told what to train on, and by whom each step is paid.

It knows neither job nor ledger and has no lease: rank 0 holds those, and this process ends
with it.
"""

from __future__ import annotations

import signal

from dp_core.errors import InvariantViolation
from dp_core.follower import Follower
from dp_core.ranks import Ranks
from service.settings import Settings
from service.worker.inputs import Inputs, adapted_model, performance_of, read_blocks

JOB_ORDER = "job"


def follow(settings: Settings, ranks: Ranks) -> None:
    """Follows rank 0 until it ends the run.

    Raises:
        RankLost: rank 0 failed or went silent; other errors as in `dp_core.follower`.
    """
    # A stop is heeded by rank 0 alone, which then dismisses the others between two steps.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    order = ranks.hear()
    if order.kind != JOB_ORDER:
        raise InvariantViolation(f"The order {order.kind} came before the job.")
    inputs, performance = Inputs.from_document(order.document), performance_of(settings)
    model, tokenizer = adapted_model(inputs, performance)
    Follower(
        plan=inputs.plan,
        model=model,
        blocks=read_blocks(inputs, tokenizer),
        performance=performance,
        ranks=ranks,
    ).run()

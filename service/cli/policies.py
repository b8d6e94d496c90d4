"""`rldp policy`: make, score, copy and show a pretrained hyper-policy. Public data only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

app = typer.Typer(
    no_args_is_help=True,
    help="The pretrained policy of the controller. No command here reads a patient's record.",
)

T = TypeVar("T")
PolicyDir = Annotated[
    Path | None,
    typer.Option("--policy", help="Directory of a policy. Default: the one this release ships."),
]


@app.command()
def pretrain(
    out: Annotated[Path, typer.Option(help="Where policy.safetensors and card.json go.")],
    seed: Annotated[int, typer.Option(min=0, help="Names tasks' order, networks, draws.")] = 0,
    windows: Annotated[
        int | None,
        typer.Option(min=1, help="Windows to train on. Default: what made the shipped policy."),
    ] = None,
    minutes_max: Annotated[
        float | None, typer.Option(min=0.01, help="Stop after so many minutes of CPU time.")
    ] = None,
    tasks: Annotated[int, typer.Option(min=2, help="Unseen tasks it is then scored on.")] = 60,
) -> None:
    """Train a policy on synthetic public tasks and score it on others (about 2 CPU-minutes)."""
    import dataclasses
    import math

    from controller.pretraining.commands import pretrain_policy
    from controller.pretraining.train import PretrainingConfig

    config = PretrainingConfig(seed=seed)
    if windows is not None:
        config = dataclasses.replace(config, windows=windows)

    def show(done: int, reward: float) -> None:
        typer.echo(f"window {done} of {config.windows}, mean reward {reward:+.3f}")

    policy = pretrain_policy(
        out,
        config=config,
        cpu_seconds_max=math.inf if minutes_max is None else 60 * minutes_max,
        evaluation_tasks_count=tasks,
        progress=show,
    )
    _print_score(policy.card["evaluation"])
    typer.echo(f"Wrote {out}, digest {policy.digest}.")


@app.command()
def evaluate(
    policy: PolicyDir = None,
    tasks: Annotated[int, typer.Option(min=2, help="Tasks outside the training suite.")] = 60,
) -> None:
    """Score a policy against the reference plan on tasks that pretraining never saw."""
    from controller.pretraining.commands import evaluate_policy
    from controller.pretraining.policy_file import DEFAULT_POLICY, read_policy

    score = evaluate_policy(_checked(lambda: read_policy(policy or DEFAULT_POLICY)), count=tasks)
    _print_score(score.to_dict())


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="An empty directory.")], policy: PolicyDir = None
) -> None:
    """Copy a policy: safetensors and JSON, no pickle."""
    from controller.pretraining.commands import export_policy

    digest = _checked(lambda: export_policy(policy, out))
    typer.echo(f"Wrote {out}, digest {digest}.")


@app.command()
def show(policy: PolicyDir = None) -> None:
    """Print the card of a policy after checking its digest."""
    from controller.pretraining.commands import describe_policy

    typer.echo(_checked(lambda: describe_policy(policy)))


def _print_score(score: dict[str, float]) -> None:
    typer.echo(
        f"{score['tasks']} unseen tasks, final loss minus the reference plan's in nats: "
        f"mean {score['mean']:+.3f} (standard error {score['standard_error']:.3f}), "
        f"median {score['median']:+.3f}, worst {score['worst']:+.3f}; better in "
        f"{score['better_share']:.0%}; {score['gap_closed']:.0%} of the excess loss gone."
    )


def _checked(act: Callable[[], T]) -> T:
    """A controller's refusal as one plain line."""
    from controller.errors import ControllerError

    try:
        return act()
    except ControllerError as error:
        raise typer.BadParameter(str(error)) from None

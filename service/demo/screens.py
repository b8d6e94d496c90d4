"""What the demonstration shows in the terminal: stages, a price table, a live bar, the result."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.panel import Panel
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from service.certificates.label import label_facts


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """A released, noised loss on patients never trained on, with its standard error."""

    step: int
    value: float
    std: float

    def said(self) -> str:
        return f"{self.value:.3f} ± {self.std:.3f}"

    def perplexity(self) -> str:
        low, high = math.exp(self.value - self.std), math.exp(self.value + self.std)
        return f"{math.exp(self.value):.1f} ({low:.1f} to {high:.1f})"


class Screen:
    """Numbered stages on a console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._stage = 0

    def stage(self, title: str, detail: str = "") -> None:
        self._stage += 1
        self.console.print(Text.assemble((f"{self._stage:>2} ", "dim"), (title, "bold")))
        if detail:
            self.note(detail)

    def note(self, text: str) -> None:
        self._indented(Text(text, style="dim"))

    def warn(self, text: str) -> None:
        self._indented(Text(text, style="yellow"))

    def _indented(self, text: Text) -> None:
        self.console.print(Padding(text, (0, 0, 0, 3)))

    def estimate(self, answer: Mapping[str, Any], limit: str) -> None:
        """The price of the job, before anything is spent."""
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 3))
        table.add_column(style="dim")
        table.add_column()
        levels = ", ".join(level["noise_multiplier"] for level in answer["levels"])
        q, steps = answer["sampling_probability"], answer["steps_max"]
        rows = (
            ("guarantee of the job", f"ε {answer['epsilon_job']} at δ {answer['delta']}"),
            ("by", str(answer["rule"]).replace("_", " ")),
            ("steps", f"{steps}, at most {answer['steps_started_max']} started"),
            ("each draws", f"a patient with probability {q}, {answer['batch_size']} expected"),
            ("noise multiplier", levels),
            ("takes of the limit", f"{100 * float(answer['population_share']):.1f} % of {limit}"),
            ("feasible", "yes" if answer["feasible"] else "no: " + ", ".join(answer["remedies"])),
        )
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    def result(
        self,
        predicate: Mapping[str, Any],
        losses: Sequence[HeldOutLoss],
        sentence: Mapping[str, str] | None,
        prompt: str,
    ) -> None:
        """Label, loss and sentence, before and after."""
        table = Table(title="Held-out loss, noised and charged", title_justify="left", box=None)
        for heading in ("", "before", "after"):
            table.add_column(heading, style="dim" if not heading else "")
        if losses:
            first, last = losses[0], losses[-1]
            table.add_row("nats a token", first.said(), last.said())
            table.add_row("perplexity", first.perplexity(), last.perplexity())
            table.add_row("at step", str(first.step), str(last.step))
        self.console.print()
        self.console.print(table)
        if sentence is not None:
            self.console.print()
            for name in ("before", "after"):
                text = _continuation(sentence[name], prompt)
                self.console.print(Panel(text, title=f"The sentence {name}", title_align="left"))
        self.console.print(_label(predicate))

    @contextmanager
    def progress(self, steps: int) -> Iterator[JobBar]:
        """A live bar of the job; on a file or pipe, one line at each change of the loss."""
        bar = JobBar(self.console, steps)
        with bar.live:
            yield bar


class _Facts(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("facts", "")), style="cyan")


class JobBar:
    """Steps of steps, budget charged of reserved, ε so far (a report), newest held-out loss."""

    def __init__(self, console: Console, steps: int) -> None:
        self.live = Progress(
            TextColumn("   {task.description}"),
            BarColumn(bar_width=14),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            _Facts(),
            TimeElapsedColumn(),
            console=console,
        )
        self._console = console
        self._task = self.live.add_task("queued", total=steps, facts="")
        self._said = ""

    def show(self, job: Mapping[str, Any], losses: Sequence[HeldOutLoss]) -> None:
        privacy = job["privacy"]
        share = int(privacy["spent_pico"]) / max(1, int(privacy["reserved_pico"]))
        so_far, target = privacy["epsilon_so_far"]["value"], privacy["target_epsilon"]
        loss = f"  held-out {losses[-1].said()}" if losses else ""
        facts = f"charged {100 * share:.0f} %, ε {so_far} of {target}{loss}"
        step = job["progress"]["step"]
        self.live.update(self._task, completed=step, description=job["state"], facts=facts)
        line = f"   {job['state']}: step {step}, {facts}"
        if not self._console.is_terminal and line != self._said and loss != self._last_loss():
            self._console.print(line, soft_wrap=True)
            self._said = line

    def _last_loss(self) -> str:
        _, found, loss = self._said.partition("  held-out ")
        return f"{found}{loss}" if found else ""


def _continuation(text: str, prompt: str) -> Text:
    """The prompt in bold, what the model adds after it."""
    start = " ".join(prompt.split())
    if not text.startswith(start):
        return Text(text)
    return Text.assemble((start, "bold"), text[len(start) :])


def _label(predicate: Mapping[str, Any]) -> Panel:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", max_width=26)
    table.add_column()
    for fact in label_facts(predicate):
        value = Text(fact.value)
        table.add_row(fact.name, Group(value, Text(fact.note, style="dim")) if fact.note else value)
    table.add_row("Verdict", Text(str(predicate["verdict"]), style="bold"))
    return Panel(table, title="Privacy facts", title_align="left", border_style="bold")

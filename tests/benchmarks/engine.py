"""Time and memory of one private step against one plain LoRA step of the same model.

    make bench-engine            the bars of privacy.md 15, as a table, JSON and Markdown
    python -m tests.benchmarks.engine --help

Arms take turns within one run, each right after a plain step (A B A C A D ...), two warm-ups,
then the median of the ratios of such pairs: a machine that slows down slows both. The plain
arm paired with itself shows what noise is left. Short rows get more rounds. On a CPU the
time is that of the process, with one thread, so other processes do not count. Memory is
measured in one process per arm: the peak above what the imported libraries take.

Every arm: one random Llama shape, LoRA on all linear layers, gradient checkpointing, 64
patients in microbatches of constant shape, Adam. The private arms release per-tensor sums
with noise from torch's generator, clip bits and loss; Opacus' arms clip flat.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from transformers import LlamaConfig, LlamaForCausalLM

from dp_core.lora import ClipGroup, attach_adapters, clip_groups, layout_of
from dp_core.mechanism import admit
from dp_core.opacus_hooks import OpacusHooksEngine
from dp_core.plan import AdapterPlan, ClippingPlan, OptimizerPlan, Performance, RunPlan
from dp_core.plan_optimizer import PlanOptimizer
from dp_core.ports import ChunkPermit, GroupActions
from dp_core.records import PaddedRows, patient_losses
from dp_core.schedule import make_optimizer
from dp_core.step import arithmetic, make_engine, summed_backward

PATIENTS = 64
TIME_BAR = {"cpu": 1.05, "cuda": 1.10}
MEMORY_BAR = 1.05
BARRED = ("per_group",)  # arms that must meet the bars; whitened pays P * sum d_k floats more
WARM_UPS = 2
LONGEST = 1024
LEARNING_RATE = "0.001"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A base model, a row length and a microbatch."""

    hidden: int
    layers: int
    tokens: int
    rank: int
    patients_per_microbatch: int
    device: str
    base_dtype: str
    vocabulary: int = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One arm, built: `step()` trains on 64 patients once."""

    step: Callable[[], None]
    groups: tuple[ClipGroup, ...]


def adapted_llama(shape: Shape) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.hidden * 11 // 4,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // 64,
        num_key_value_heads=shape.hidden // 64,
        max_position_embeddings=shape.tokens,
    )
    dtype = torch.bfloat16 if shape.base_dtype == "bfloat16" else torch.float32
    with torch.device(shape.device):
        base = LlamaForCausalLM(config).to(dtype).requires_grad_(False)
    base.config.use_cache = False
    model = attach_adapters(base, AdapterPlan(r=shape.rank, alpha=2 * shape.rank), seed=1)
    model = model.to(shape.device)
    # Opacus' hooks see nothing under the other kind (D4), and all arms shall run the same.
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    model.train()
    return model


def microbatches(shape: Shape) -> list[PaddedRows]:
    generator = torch.Generator().manual_seed(2)
    size, result = shape.patients_per_microbatch, []
    for _ in range(PATIENTS // size):
        tokens = torch.randint(0, shape.vocabulary, (size, shape.tokens), generator=generator)
        result.append(
            PaddedRows(
                tokens=tokens.to(shape.device),
                targets=tokens.roll(-1, dims=1).to(shape.device),
                slot_mask=torch.ones(size, device=shape.device),
                row_share=torch.ones(size, device=shape.device),
            )
        )
    return result


def performance_of(shape: Shape) -> Performance:
    return Performance(device=shape.device, patients_per_microbatch=shape.patients_per_microbatch)


def plain_job(shape: Shape) -> Job:
    """Non-private LoRA: the mean gradient, nothing else."""
    model, batches = adapted_llama(shape), microbatches(shape)
    groups = clip_groups(model)
    optimizer = make_optimizer(groups, OptimizerPlan(learning_rate=LEARNING_RATE))

    def step() -> None:
        for rows in batches:
            with arithmetic(performance_of(shape)):
                logits = model(input_ids=rows.tokens).logits
            (patient_losses(logits, rows).sum() / PATIENTS).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Job(step=step, groups=groups)


def plan_for(shape: Shape, rule: str) -> RunPlan:
    """Any plan: its level decides how much noise is added, not how long that takes."""
    return RunPlan(
        unit="patient",
        patients_public=1000,
        target_epsilon="8",
        delta="1e-5",
        sampling_probability="0.064",
        batch_size_expected=PATIENTS,
        steps_planned=100,
        steps_started_max=100,
        steps_per_chunk=25,
        noise_levels=("1.000",),
        job_limit=100,
        epsilon_certified="8",
        clipping=ClippingPlan(rule=rule),  # type: ignore[arg-type]
        tokens_per_row=shape.tokens,
        seed=1,
        controller_type="reference",
        base_model_digest="0" * 64,
        dataset_version="bench",
    )


class GeneratorNoise:
    """`torch_generator` noise without a journal: the benchmark trains on random tokens."""

    name, is_private = "bench", False

    def __init__(self, device: str) -> None:
        self._generator = torch.Generator(device).manual_seed(3)
        self._device = device

    def draw(self, permit: ChunkPermit, length: int) -> torch.Tensor:
        return torch.randn(length, generator=self._generator, device=self._device)


def private_job(shape: Shape, rule: str, engine: str = "one_backward") -> Job:
    """Ours: per-tensor clips, one flat noise draw, bits and loss released too."""
    model, batches = adapted_llama(shape), microbatches(shape)
    groups = clip_groups(model)
    performance = performance_of(shape)
    attached = (
        OpacusHooksEngine(model, groups)
        if engine == "opacus_hooks"
        else make_engine(model, groups, performance)
    )
    optimizer = PlanOptimizer(
        make_optimizer(groups, OptimizerPlan(learning_rate=LEARNING_RATE)),
        groups=groups,
        engine=attached,
        noise_source=GeneratorNoise(shape.device),  # type: ignore[arg-type]
        batch_size_expected=PATIENTS,
        noise_levels=("1.000",),
        device=shape.device,
    )
    count = len(groups)
    settings = admit(
        plan_for(shape, rule), layout_of(groups), (0.05,) * count, GroupActions.neutral(count)
    )
    permit = ChunkPermit(attempt=1, chunk_index=0, first_step=0, steps=10**6, reference="bench")

    def step() -> None:
        optimizer.arm(permit, settings)
        for index, rows in enumerate(batches):
            optimizer.open_microbatch(slot_mask=rows.slot_mask, rows_per_patient=1)
            optimizer.take_losses(summed_backward(model, rows, performance))
            optimizer.signal_skip_step(index < len(batches) - 1)
            optimizer.step()
            optimizer.zero_grad()

    return Job(step=step, groups=groups)


def opacus_hooks_job(shape: Shape) -> Job:
    """Opacus alone: GradSampleHooks and its own DPOptimizer, one flat clip."""
    from opacus.grad_sample.grad_sample_module import GradSampleHooks

    model, batches = adapted_llama(shape), microbatches(shape)
    groups = clip_groups(model)
    GradSampleHooks(model, batch_first=True, loss_reduction="sum", strict=False)
    optimizer = DPOptimizer(
        make_optimizer(groups, OptimizerPlan(learning_rate=LEARNING_RATE)),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=PATIENTS,
    )

    def step() -> None:
        for index, rows in enumerate(batches):
            patient_losses(model(input_ids=rows.tokens).logits, rows).sum().backward()
            optimizer.signal_skip_step(index < len(batches) - 1)
            optimizer.step()
            optimizer.zero_grad()

    return Job(step=step, groups=groups)


def opacus_ghost_job(shape: Shape) -> Job:
    """Opacus' ghost clipping: two backward passes, one flat clip."""
    model, batches = adapted_llama(shape), microbatches(shape)
    groups = clip_groups(model)
    wrapped = GradSampleModuleFastGradientClipping(
        model,
        batch_first=True,
        loss_reduction="sum",
        strict=False,
        max_grad_norm=1.0,
        use_ghost_clipping=True,
    )
    optimizer = DPOptimizerFastGradientClipping(
        make_optimizer(groups, OptimizerPlan(learning_rate=LEARNING_RATE)),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=PATIENTS,
        loss_reduction="sum",
    )

    def step() -> None:
        for index, rows in enumerate(batches):
            losses = patient_losses(wrapped(input_ids=rows.tokens).logits, rows)
            optimizer.signal_skip_step(index < len(batches) - 1)
            DPTensorFastGradientClipping(wrapped, optimizer, losses, "sum").backward()
            optimizer.step()
            optimizer.zero_grad()

    return Job(step=step, groups=groups)


ARMS: dict[str, Callable[[Shape], Job]] = {
    "non_private": plain_job,
    "per_group": lambda shape: private_job(shape, "per_group"),
    "whitened": lambda shape: private_job(shape, "whitened"),
    "hooks_per_group": lambda shape: private_job(shape, "per_group", "opacus_hooks"),
    "opacus_hooks": opacus_hooks_job,
    "opacus_ghost": opacus_ghost_job,
}


def seconds_of(job: Job, device: str) -> float:
    """Process CPU time of a step, or wall time on a GPU that did nothing else."""
    if device == "cuda":
        torch.cuda.synchronize()
        started = time.perf_counter()
        job.step()
        torch.cuda.synchronize()
        return time.perf_counter() - started
    started = time.process_time()
    job.step()
    return time.process_time() - started


def time_arms(shape: Shape, rounds: int, names: list[str]) -> dict[str, dict[str, float]]:
    """Median of each arm's ratio to a plain step taken right before it."""
    jobs = {name: ARMS[name](shape) for name in names}
    plain = jobs["non_private"]
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for index in range(WARM_UPS + rounds):
        told = []
        for name, job in jobs.items():
            before, seconds = seconds_of(plain, shape.device), seconds_of(job, shape.device)
            told.append(f"{name} {seconds / before:.3f}")
            if index >= WARM_UPS:
                ratios[name].append(seconds / before)
        kind = "warm-up" if index < WARM_UPS else "round"
        print(f"  {kind} {index + 1}: " + "  ".join(told), flush=True)
    return {
        name: {
            "time_ratio": statistics.median(values),
            "time_ratio_min": min(values),
            "time_ratio_max": max(values),
        }
        for name, values in ratios.items()
    }


def peak_memory(shape: Shape, name: str) -> int:
    """Bytes of one arm's step above the imported libraries, in this fresh process."""
    if shape.device == "cuda":
        job = ARMS[name](shape)
        torch.cuda.reset_peak_memory_stats()
        job.step()
        job.step()
        return int(torch.cuda.max_memory_allocated())
    before = _status_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    job = ARMS[name](shape)
    job.step()
    job.step()
    return (_status_kib("VmHWM") - before) * 1024


def _status_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise OSError(f"{field} is not told by this kernel")


def memory_in_child(shape: Shape, name: str) -> int:
    command = [sys.executable, "-m", "tests.benchmarks.engine", "--memory-of", name]
    command += ["--shape", json.dumps(dataclasses.asdict(shape))]
    return int(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
    )


def measure(shape: Shape, rounds: int, names: list[str]) -> dict[str, dict[str, float]]:
    print(f"{shape.tokens} tokens per row")
    result = time_arms(shape, max(rounds, rounds * LONGEST // (2 * shape.tokens)), names)
    plain = memory_in_child(shape, "non_private")
    for name in names:
        result[name]["memory_ratio"] = memory_in_child(shape, name) / plain
    return result


def markdown(results: dict[str, dict[str, dict[str, float]]], device: str) -> str:
    lines = [
        f"| tokens | engine | time / plain (median, min-max), {device} | peak memory / plain |",
        "|---|---|---|---|",
    ]
    for tokens, arms in results.items():
        for name, r in arms.items():
            spread = f"{r['time_ratio_min']:.3f}-{r['time_ratio_max']:.3f}"
            time_cell, memory_cell = f"{r['time_ratio']:.3f} ({spread})", f"{r['memory_ratio']:.3f}"
            lines.append(f"| {tokens} | {name} | {time_cell} | {memory_cell} |")
    return "\n".join(lines) + "\n"


def missed(results: dict[str, dict[str, dict[str, float]]], device: str) -> list[str]:
    """Bars of privacy.md 15 that this run does not meet."""
    found = []
    for tokens, arms in results.items():
        for name in BARRED:
            if name in arms and arms[name]["time_ratio"] > TIME_BAR[device]:
                found.append(f"{name} at {tokens} tokens: time {arms[name]['time_ratio']:.3f}")
            if name in arms and arms[name]["memory_ratio"] > MEMORY_BAR:
                found.append(f"{name} at {tokens} tokens: memory {arms[name]['memory_ratio']:.3f}")
    return found


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 512, 1024])
    parser.add_argument("--hidden", type=int, default=2048 if cuda else 256)
    parser.add_argument("--layers", type=int, default=16 if cuda else 4)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--microbatch", type=int, default=8)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--out", type=Path, help="folder for engine.json and engine.md")
    parser.add_argument("--memory-of", choices=list(ARMS), help=argparse.SUPPRESS)
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    arguments = parsed()
    torch.set_num_threads(1)
    if arguments.memory_of:
        print(peak_memory(Shape(**json.loads(arguments.shape)), arguments.memory_of))
        return 0
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = {}
    for tokens in arguments.tokens:
        shape = Shape(
            hidden=arguments.hidden,
            layers=arguments.layers,
            tokens=tokens,
            rank=arguments.rank,
            patients_per_microbatch=arguments.microbatch,
            device=device,
            base_dtype="bfloat16" if device == "cuda" else "float32",
        )
        names = ["non_private", *[name for name in arguments.arms if name != "non_private"]]
        results[str(tokens)] = measure(shape, arguments.rounds, names)
    table = markdown(results, device)
    print("\n" + table)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "engine.json").write_text(json.dumps(results, indent=1) + "\n")
        (arguments.out / "engine.md").write_text(table)
    for miss in missed(results, device):
        print(f"BAR MISSED: {miss}")
    return 1 if missed(results, device) else 0


if __name__ == "__main__":
    sys.exit(main())

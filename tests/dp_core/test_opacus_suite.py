"""Opacus' own tests, with `PrivateOptimizer` in the place of its optimisers (OPACUS, E9).

They run in a process of their own, from the installed package, with the plugin
`opacus_substitution`. What is left out stands in `SKIPPED`, each with its reason; the long
modules are behind `slow`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import opacus
import pytest

ROOT = Path(__file__).parents[2]
SUITE = Path(opacus.__file__).parent / "tests"

SKIPPED = {
    "multidevice_optimizer_test.py": "needs two GPUs",
    "multigpu_*": "needs several GPUs",
    "mixed_precision_test.py": "needs CUDA",
    "*_fast_gradient_clipping_test.py": "ghost clipping has its own optimisers; not used here",
    "distributed_poisson_test.py, dpdataloader_test.py": "no optimiser in them",
    "grad_samples/, dp_layers/, validators/": "per-sample gradients of layers: no optimiser",
    "grad_sample_*_test.py, module_validator_test.py": "no optimiser in them",
}
NEEDS_TORCHVISION = ("test_model_validator", "test_validator_weight_update_check")


def run_suite(*modules: str, deselect: tuple[str, ...] = ()) -> tuple[int, int]:
    """(passed, optimisers made) of the modules under substitution; anything failed raises."""
    expression = " and ".join(f"not {name}" for name in deselect)
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", str(SUITE)),
            *("-p", "tests.dp_core.opacus_substitution", "-p", "no:cacheprovider"),
            *(("-k", expression) if expression else ()),
            *(str(SUITE / module) for module in modules),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    report = result.stdout
    assert result.returncode == 0, report[-3000:]
    passed = re.search(r"(\d+) passed", report)
    made = re.search(r"substituted optimisers: (\d+)", report)
    assert passed is not None and made is not None
    return int(passed[1]), int(made[1])


def test_schedulers_noise_and_accumulation_hold_with_our_optimiser() -> None:
    passed, made = run_suite(
        "schedulers/grad_clip_scheduler_test.py",
        "schedulers/noise_scheduler_test.py",
        "randomness_test.py",
        "accounting_noise_multiplier_test.py",
        "gradient_accumulation_test.py",
    )
    assert passed >= 46
    assert made >= 40


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_accountants_and_batch_memory_hold_with_our_optimiser() -> None:
    passed, made = run_suite("accountants_test.py", "batch_memory_manager_test.py")
    assert passed >= 22
    assert made >= 100


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_privacy_engine_holds_with_our_optimiser() -> None:
    passed, made = run_suite(
        "privacy_engine_test.py", "privacy_engine_validation_test.py", deselect=NEEDS_TORCHVISION
    )
    assert passed >= 150
    assert made >= 150

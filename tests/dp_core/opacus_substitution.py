"""A pytest plugin that puts `PrivateOptimizer` in the place of Opacus' own optimisers.

`test_opacus_suite.py` runs Opacus' installed tests with it, in a process of their own. The
tests want torchvision for random images only; where it is missing, a stand-in makes them.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import opacus.optimizers
import opacus.optimizers.optimizer
import opacus.optimizers.perlayeroptimizer
import torch

from dp_core.optimizer import PrivateOptimizer

made = 0


class Counted(PrivateOptimizer):
    """Counts itself: a run in which nothing was substituted proves nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        global made
        super().__init__(*args, **kwargs)
        made += 1


def pytest_configure() -> None:
    opacus.optimizers.DPOptimizer = Counted
    opacus.optimizers.optimizer.DPOptimizer = Counted
    opacus.optimizers.DPPerLayerOptimizer = Counted
    opacus.optimizers.perlayeroptimizer.DPPerLayerOptimizer = Counted
    if importlib.util.find_spec("torchvision") is None:
        _install_images()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"substituted optimisers: {made}")


class FakeData(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Random images, the same for the same index."""

    def __init__(
        self,
        size: int = 1000,
        image_size: Sequence[int] = (3, 224, 224),
        num_classes: int = 10,
        transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
        target_transform: object = None,
        random_offset: int = 0,
    ) -> None:
        self.size, self.image_size, self.classes = size, tuple(image_size), num_classes
        self.transform, self.offset = transform, random_offset

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index >= self.size:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(index + self.offset)
        image = torch.rand(self.image_size, generator=generator)
        target = int(torch.randint(0, self.classes, (1,), generator=generator))
        return (image if self.transform is None else self.transform(image)), target


class Compose:
    def __init__(self, steps: Sequence[Callable[[torch.Tensor], torch.Tensor]]) -> None:
        self.steps = list(steps)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            image = step(image)
        return image


class ToTensor:
    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return image


class Normalize:
    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return (image - self.mean[:, None, None]) / self.std[:, None, None]


def _install_images() -> None:
    package = types.ModuleType("torchvision")
    for name, members in {
        "datasets": {"FakeData": FakeData},
        "transforms": {"Compose": Compose, "ToTensor": ToTensor, "Normalize": Normalize},
        "models": {},
    }.items():
        module = types.ModuleType(f"torchvision.{name}")
        for key, value in members.items():
            setattr(module, key, value)
        setattr(package, name, module)
        sys.modules[f"torchvision.{name}"] = module
    sys.modules["torchvision"] = package

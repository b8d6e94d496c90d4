"""Writes a SAC model's tensors to safetensors bytes and reads them back. No pickle.

Taken over: networks, optimiser moments, entropy temperature and replay rows. A state is
checked whole (names, shapes, types, finiteness) before anything of it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from stable_baselines3 import SAC
from torch import Tensor

from controller.errors import PolicyStateMismatch

REPLAY_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones")


def pack_model(model: SAC) -> dict[str, Tensor]:
    """All tensors of the model under stable names; copies, so later training changes none."""
    tensors = {f"network/{name}": value for name, value in model.policy.state_dict().items()}
    tensors["entropy/log_coefficient"] = model.log_ent_coef
    for label, optimizer in _optimizers(model).items():
        for index, moments in optimizer.state_dict()["state"].items():
            for field, value in moments.items():
                tensors[f"optimizer/{label}/{index}/{field}"] = value
    rows = model.replay_buffer.size()
    for name in REPLAY_ARRAYS:
        tensors[f"replay/{name}"] = torch.from_numpy(getattr(model.replay_buffer, name)[:rows])
    return {name: value.detach().clone().contiguous() for name, value in tensors.items()}


def unpack_model(model: SAC, tensors: Mapping[str, Tensor], *, replay_position: int) -> None:
    """Puts checked tensors into a model built with the same settings."""
    networks = {
        name.removeprefix("network/"): value
        for name, value in tensors.items()
        if name.startswith("network/")
    }
    model.policy.load_state_dict(networks)
    with torch.no_grad():
        model.log_ent_coef.copy_(tensors["entropy/log_coefficient"])
    for label, optimizer in _optimizers(model).items():
        document = optimizer.state_dict()
        document["state"] = _moments(tensors, f"optimizer/{label}/")
        optimizer.load_state_dict(document)
    buffer = model.replay_buffer
    rows = len(tensors["replay/rewards"])
    for name in REPLAY_ARRAYS:
        getattr(buffer, name)[:rows] = tensors[f"replay/{name}"].numpy()
    buffer.pos, buffer.full = replay_position, rows == buffer.buffer_size


def check_model_tensors(model: SAC, tensors: Mapping[str, Tensor], *, replay_position: int) -> None:
    """Refuses tensors that `unpack_model` could not take over whole.

    Raises:
        PolicyStateMismatch: a name, shape or type differs, or a number is not finite.
    """
    expected = pack_model(model)
    required = {name for name in expected if not name.startswith("optimizer/")}
    given = {name for name in tensors if not name.startswith("optimizer/")}
    if required != given:
        raise PolicyStateMismatch("its tensors have other names")
    for name in required:
        shape, found = expected[name].shape, tensors[name].shape
        if name.startswith("replay/"):
            shape, found = shape[1:], found[1:]
        if shape != found or expected[name].dtype != tensors[name].dtype:
            raise PolicyStateMismatch("a tensor has another shape or type")
    _check_optimizers(model, tensors)
    _check_replay(model, tensors, replay_position)
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise PolicyStateMismatch("it holds numbers that are not finite")


def read_tensors(data: bytes) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        PolicyStateMismatch: the bytes are no such file.
    """
    try:
        tensors: dict[str, Tensor] = load(data)
    except (SafetensorError, ValueError, TypeError):
        raise PolicyStateMismatch("its tensors cannot be read") from None
    return tensors


def write_tensors(tensors: dict[str, Tensor]) -> bytes:
    data: bytes = save(tensors)
    return data


def _optimizers(model: SAC) -> dict[str, torch.optim.Optimizer]:
    return {
        "actor": model.actor.optimizer,
        "critic": model.critic.optimizer,
        "entropy": model.ent_coef_optimizer,
    }


def _moments(tensors: Mapping[str, Tensor], prefix: str) -> dict[int, dict[str, Tensor]]:
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(prefix):
            index, _, field = name.removeprefix(prefix).partition("/")
            moments.setdefault(int(index), {})[field] = value.clone()
    return moments


def _check_optimizers(model: SAC, tensors: Mapping[str, Tensor]) -> None:
    """Adam has no moments before its first step, then three tensors for each parameter."""
    expected: dict[str, Any] = {}
    for label, optimizer in _optimizers(model).items():
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, parameter in enumerate(parameters):
            for field in ("step", "exp_avg", "exp_avg_sq"):
                shape = torch.Size() if field == "step" else parameter.shape
                expected[f"optimizer/{label}/{index}/{field}"] = shape
    found = {n: v.shape for n, v in tensors.items() if n.startswith("optimizer/")}
    if found and found != expected:
        raise PolicyStateMismatch("its optimiser moments do not fit")


def _check_replay(model: SAC, tensors: Mapping[str, Tensor], position: int) -> None:
    capacity = model.replay_buffer.buffer_size
    rows = {len(tensors[f"replay/{name}"]) for name in REPLAY_ARRAYS}
    count = rows.pop()
    position_valid = position == count or (count == capacity and position < capacity)
    if rows or count > capacity or not 0 <= position < max(capacity, 1) or not position_valid:
        raise PolicyStateMismatch("its replay rows do not fit")


def actor_bytes(model: SAC) -> bytes:
    """The actor's parameters in one fixed byte order, for a digest."""
    parts: list[bytes] = []
    for name, value in sorted(model.actor.state_dict().items()):
        array = np.ascontiguousarray(value.detach().cpu().numpy(), dtype="<f4")
        parts.append(f"{name}:{array.shape};".encode() + array.tobytes())
    return b"".join(parts)

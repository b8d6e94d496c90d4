"""The released adapter: PEFT's two files, safetensors and JSON, nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict
from safetensors.torch import save_file

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def save_adapter(model: Any, directory: Path, *, base_model_name: str) -> tuple[Path, Path]:
    """Writes the adapter as PEFT reads it and returns (weights, config).

    The base model is named by its catalogue id, never by a path of the training host.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in get_peft_model_state_dict(model).items()
    }
    weights, config = directory / WEIGHTS, directory / CONFIG
    save_file(tensors, weights, metadata={"format": "pt"})
    document = model.peft_config["default"].to_dict()
    document["base_model_name_or_path"] = base_model_name
    document["inference_mode"] = True
    config.write_text(json.dumps(document, sort_keys=True, indent=1, default=_plain) + "\n")
    return weights, config


def _plain(value: Any) -> Any:
    """PEFT's enums and sets, as JSON holds them."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return getattr(value, "value", str(value))

"""The adapter to release: PEFT's two files, safetensors and JSON, nothing else."""

from __future__ import annotations

import json
from typing import Any

from peft import get_peft_model_state_dict
from safetensors.torch import save

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def adapter_files(model: Any, *, base_model_name: str) -> dict[str, bytes]:
    """The adapter as PEFT reads it, by file name.

    The base model is named by its catalogue id, never by a path of the training host.
    """
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in get_peft_model_state_dict(model).items()
    }
    document = model.peft_config["default"].to_dict()
    document["base_model_name_or_path"] = base_model_name
    document["inference_mode"] = True
    config = json.dumps(document, sort_keys=True, indent=1, default=_plain) + "\n"
    return {WEIGHTS: save(tensors, metadata={"format": "pt"}), CONFIG: config.encode()}


def _plain(value: Any) -> Any:
    """PEFT's enums and sets, as JSON holds them."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return getattr(value, "value", str(value))

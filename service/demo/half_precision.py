"""Makes the half-precision copy of a base model that the package ships.

    python -m service.demo.half_precision SOURCE DESTINATION

Weights are rounded from float32 to float16 (round to nearest even); config, tokenizer and
generation settings are copied, with the config's `dtype` set. The result is deterministic:
equal sources give equal bytes. Needs safetensors and numpy only.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

COPIED_FILES = ("generation_config.json", "tokenizer.json", "tokenizer_config.json")


class ConversionError(Exception):
    """The source cannot be turned into a half-precision copy; the text says why."""


def _rounded(name: str, values: np.ndarray) -> np.ndarray:
    if not np.issubdtype(values.dtype, np.floating):
        return values
    with np.errstate(over="ignore"):  # found below, with the tensor's name
        halved = values.astype(np.float16)
    if not np.isfinite(halved).all():
        raise ConversionError(f"{name} holds values beyond float16; keep this model in float32.")
    return halved


def convert(source: Path, destination: Path) -> None:
    """Writes the float16 copy of the model directory `source` to `destination`.

    Raises:
        ConversionError: a needed file is missing or a weight does not fit float16.
    """
    weights, config = source / "model.safetensors", source / "config.json"
    for needed in (weights, config, *(source / name for name in COPIED_FILES)):
        if not needed.is_file():
            raise ConversionError(f"{needed.name} is missing in the source directory.")
    with safe_open(weights, framework="np") as stored:
        metadata = stored.metadata() or {"format": "pt"}
        tensors = {name: _rounded(name, stored.get_tensor(name)) for name in stored.keys()}  # noqa: SIM118
    destination.mkdir(parents=True, exist_ok=True)
    save_file(tensors, destination / "model.safetensors", metadata=metadata)
    document = json.loads(config.read_text(encoding="utf-8"))
    document["dtype"] = "float16"
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    (destination / "config.json").write_text(text, encoding="utf-8")
    for name in COPIED_FILES:
        shutil.copyfile(source / name, destination / name)


def main() -> None:
    parser = argparse.ArgumentParser(description="Half-precision copy of a base model directory")
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    arguments = parser.parse_args()
    try:
        convert(arguments.source, arguments.destination)
    except ConversionError as problem:
        parser.exit(1, f"{problem}\n")


if __name__ == "__main__":
    main()

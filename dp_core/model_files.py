"""Which files make a base model, their digest, and what a directory must not bring.

Read before anything of the directory is opened by a library: weights that are pickles run
code, and so do model classes named in `auto_map`. Tokenizer files lie under the same digest
as the weights, so that a vocabulary fitted to private text cannot take the place of the
registered one unseen (L5). Imports no torch: the catalogue of the service uses it too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dp_core.errors import UnsupportedBaseModel

CONFIG_NAME = "config.json"
TOKENIZER_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
WEIGHTS_INDEX = "model.safetensors.index.json"
WEIGHTS_PATTERN = "*.safetensors"
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_CHUNK_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """Digest of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def model_digest(directory: Path, file_digest: Callable[[Path], str] = sha256_of) -> str:
    """SHA-256 over the lines `<sha256 of file>  <name>` of the files that make the model."""
    names = [CONFIG_NAME, *TOKENIZER_NAMES, WEIGHTS_INDEX]
    files = [path for name in names if (path := directory / name).is_file()]
    files += directory.glob(WEIGHTS_PATTERN)
    lines = (f"{file_digest(path)}  {path.name}\n" for path in sorted(files, key=lambda f: f.name))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_model_files(directory: Path, *, expected_digest: str | None = None) -> None:
    """Refuses a directory that is not a plain base model of safetensors and a tokenizer.

    Raises:
        UnsupportedBaseModel: pickled weights only, no weights or tokenizer, an adapter
            instead of a model, code of its own, a quantisation of its own, or another
            digest than the plan's.
    """
    if not (directory / CONFIG_NAME).is_file():
        raise UnsupportedBaseModel(
            "base_model: the directory holds no config.json. Give a directory that "
            "save_pretrained wrote."
        )
    if (directory / "adapter_config.json").exists():
        raise UnsupportedBaseModel(
            "base_model: the directory holds an adapter. Merge it into its base model, save "
            "that, and register the result as a base model of its own."
        )
    _check_weights(directory)
    _check_config(directory)
    if expected_digest is not None and model_digest(directory) != expected_digest:
        raise UnsupportedBaseModel(
            "base_model_digest: configuration, tokenizer or weights are not the files that the "
            "plan names. Restore them, or plan a new job on the changed model."
        )


def _check_weights(directory: Path) -> None:
    if not any(directory.glob(WEIGHTS_PATTERN)):
        if any(path for pattern in PICKLE_PATTERNS for path in directory.glob(pattern)):
            raise UnsupportedBaseModel(
                "base_model: the weights are pickles, which can run code when they are read. "
                "Convert them on a machine you trust: load the model there and call "
                "save_pretrained, which writes safetensors."
            )
        raise UnsupportedBaseModel(
            "base_model: the directory holds no *.safetensors. Save the model with save_pretrained."
        )
    if not (directory / "tokenizer.json").is_file():
        raise UnsupportedBaseModel(
            "base_model: the directory holds no tokenizer.json. The tokenizer is part of the "
            "public base model: save it into the same directory, never train one on the records."
        )


def _check_config(directory: Path) -> None:
    config = _json_object(directory / CONFIG_NAME)
    tokenizer_config = directory / "tokenizer_config.json"
    tokenizer = _json_object(tokenizer_config) if tokenizer_config.is_file() else {}
    if config.get("auto_map") or tokenizer.get("auto_map"):
        raise UnsupportedBaseModel(
            "base_model: auto_map names code of the directory, which is never run. Use a model "
            "that the transformers library holds itself."
        )
    if config.get("quantization_config"):
        raise UnsupportedBaseModel(
            "base_model: quantization_config is set. Give unquantised weights and choose "
            "base_dtype '8bit' or '4bit': other formats may scale a row by the rows beside it."
        )


def _json_object(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise UnsupportedBaseModel(f"base_model: {path.name} is not a JSON object. Restore it.")
    return document

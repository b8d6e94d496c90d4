"""The base models that jobs may start from: local directories, each pinned by a digest.

The packaged demo model is always there; an operator adds directories below
`RLDP_MODELS_DIR` (`name` or `org/name`). A request names a model by id, never by path or
address, and nothing is fetched.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from dp_core.memory import ModelShape
from dp_core.model_files import CONFIG_NAME, WEIGHTS_PATTERN, model_digest, sha256_of
from service.demo import models as packaged
from service.settings import Settings

CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "seq_length")


@dataclass(frozen=True, kw_only=True)
class BaseModelEntry:
    """One allowed base model. `digest` covers configuration, tokenizer and weights."""

    id: str
    directory: Path
    digest: str
    context_tokens: int
    parameters: int  # elements of its weights
    shape: ModelShape | None  # None: its configuration does not tell
    created_at: int  # Unix seconds: when the directory's configuration was written
    owned_by: str


def list_models(settings: Settings) -> list[BaseModelEntry]:
    """Every allowed model, by id."""
    found = _directories(settings)
    return [_entry(name, directory, owner) for name, (directory, owner) in sorted(found.items())]


def find_model(settings: Settings, model_id: str) -> BaseModelEntry | None:
    """The model of that id; None if it is not allowed here."""
    found = _directories(settings).get(model_id)
    return None if found is None else _entry(model_id, *found)


def packaged_model() -> BaseModelEntry:
    """The model that travels with the package: there on every machine."""
    return _entry(packaged.MODEL_NAME, packaged.path(), "rldp")


def _directories(settings: Settings) -> dict[str, tuple[Path, str]]:
    found: dict[str, tuple[Path, str]] = {}
    root = settings.models_dir
    if root is not None and root.is_dir():
        inside = [path for path in root.iterdir() if path.is_dir()]
        inside += [path for folder in inside for path in folder.iterdir() if path.is_dir()]
        for path in inside:
            name = path.relative_to(root).as_posix()
            if "/." not in f"/{name}" and _is_model(path):
                found[name] = (path, "operator")
    # last, so that no directory can take the packaged model's place
    found[packaged.MODEL_NAME] = (packaged.path(), "rldp")
    return found


def _is_model(directory: Path) -> bool:
    """Configuration, tokenizer and safetensors; other weight formats could run code."""
    return (
        (directory / CONFIG_NAME).is_file()
        and (directory / "tokenizer.json").is_file()
        and any(directory.glob(WEIGHTS_PATTERN))
    )


def _entry(name: str, directory: Path, owner: str) -> BaseModelEntry:
    config, parameters = directory / CONFIG_NAME, _parameters(directory)
    return BaseModelEntry(
        id=name,
        directory=directory,
        digest=model_digest(directory, _cached_digest),
        context_tokens=_context_tokens(config),
        parameters=parameters,
        shape=ModelShape.of(json.loads(config.read_bytes()), parameters=parameters),
        created_at=int(config.stat().st_mtime),
        owned_by=owner,
    )


def _context_tokens(config: Path) -> int:
    """Longest row the model takes; 0 when its configuration does not say."""
    values = json.loads(config.read_bytes())
    return next((int(values[name]) for name in CONTEXT_NAMES if values.get(name)), 0)


def _cached_digest(path: Path) -> str:
    status = path.stat()
    return _file_digest(path, status.st_size, status.st_mtime_ns)


def _parameters(directory: Path) -> int:
    """Elements of all weight tensors, from the files' headers."""
    return sum(_elements(file, file.stat().st_mtime_ns) for file in directory.glob(WEIGHTS_PATTERN))


@lru_cache(maxsize=256)
def _elements(path: Path, _changed_ns: int) -> int:
    """From the JSON header, whose length stands in the first 8 bytes; else 2 bytes each."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(length) if length < size else b""
    try:
        tensors = [value for name, value in json.loads(header).items() if name != "__metadata__"]
        return sum(math.prod(tensor["shape"]) for tensor in tensors)
    except (ValueError, AttributeError, TypeError, KeyError):
        return max(1, size // 2)


@lru_cache(maxsize=256)
def _file_digest(path: Path, _size: int, _changed_ns: int) -> str:
    """Read again only when size or time of change differ."""
    return sha256_of(path)

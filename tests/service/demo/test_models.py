"""The packaged base model: complete, in half precision, and made by the command it names."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from service.demo import models
from service.demo.half_precision import COPIED_FILES, ConversionError, convert

PACKAGED_MIB_MAX = 10


def _directory(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    path.mkdir()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text('{"dtype": "float32", "model_type": "gpt2"}')
    for name in COPIED_FILES:
        (path / name).write_text("{}")
    return path


class TestPackagedModel:
    def test_it_is_whole_and_small(self) -> None:
        names = {file.name for file in models.path().iterdir()}
        assert {"config.json", "model.safetensors", "README.md", *COPIED_FILES} <= names
        size = sum(file.stat().st_size for file in models.path().iterdir())
        assert size < PACKAGED_MIB_MAX * 2**20

    def test_weights_and_config_say_half_precision(self) -> None:
        tensors = load_file(models.path() / "model.safetensors")
        assert {values.dtype for values in tensors.values()} == {np.dtype(np.float16)}
        assert json.loads((models.path() / "config.json").read_text())["dtype"] == "float16"

    def test_the_card_names_source_command_licence_and_digest(self) -> None:
        card = (models.path() / "README.md").read_text(encoding="utf-8")
        weights = (models.path() / "model.safetensors").read_bytes()
        assert hashlib.sha256(weights).hexdigest() in card
        for words in ("OpenStax", "MedQuAD", "CC BY 4.0", "service.demo.half_precision"):
            assert words in card

    def test_it_is_the_half_precision_copy_of_the_original(
        self, shared: Path, tmp_path: Path
    ) -> None:
        convert(shared / "data" / "models" / models.MODEL_NAME, tmp_path / "copy")
        for name in ("config.json", "model.safetensors", *COPIED_FILES):
            assert (tmp_path / "copy" / name).read_bytes() == (models.path() / name).read_bytes()

    def test_importing_it_loads_no_torch(self) -> None:
        code = "import sys, service.demo.models as m; m.path(); print('torch' in sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "False"


class TestConvert:
    def test_rounds_to_the_nearest_half(self, tmp_path: Path) -> None:
        values = np.array([1.0, 1.0 + 2**-12, -3.5], dtype=np.float32)
        source = _directory(tmp_path / "a", {"w": values})
        convert(source, tmp_path / "b")
        rounded = load_file(tmp_path / "b" / "model.safetensors")["w"]
        assert rounded.tolist() == [1.0, 1.0, -3.5]

    def test_keeps_integers(self, tmp_path: Path) -> None:
        source = _directory(tmp_path / "a", {"ids": np.array([70000], dtype=np.int64)})
        convert(source, tmp_path / "b")
        assert load_file(tmp_path / "b" / "model.safetensors")["ids"].dtype == np.int64

    def test_refuses_weights_beyond_half_precision(self, tmp_path: Path) -> None:
        source = _directory(tmp_path / "a", {"w": np.array([1e6], dtype=np.float32)})
        with pytest.raises(ConversionError, match="w holds values beyond float16"):
            convert(source, tmp_path / "b")

    def test_refuses_a_directory_that_is_no_model(self, tmp_path: Path) -> None:
        with pytest.raises(ConversionError, match=r"model\.safetensors is missing"):
            convert(tmp_path, tmp_path / "b")

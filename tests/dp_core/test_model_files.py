"""What a base model's directory may hold, and its digest (L5)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dp_core.errors import UnsupportedBaseModel
from dp_core.model_files import TOKENIZER_NAMES, check_model_files, model_digest


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


class TestDigest:
    @pytest.mark.parametrize(
        "name", ["config.json", "model.safetensors", "model.safetensors.index.json"]
    )
    def test_changes_with_configuration_and_weights(self, directory: Path, name: str) -> None:
        before = model_digest(directory)
        (directory / name).write_text('{"other": 1}')
        assert model_digest(directory) != before

    @pytest.mark.parametrize("name", TOKENIZER_NAMES)
    def test_changes_with_every_tokenizer_file(self, directory: Path, name: str) -> None:
        before = model_digest(directory)
        (directory / name).write_text('["a token of the records"]')
        assert model_digest(directory) != before

    def test_does_not_change_with_a_readme(self, directory: Path) -> None:
        before = model_digest(directory)
        (directory / "README.md").write_text("about")
        assert model_digest(directory) == before


class TestCheckModelFiles:
    def test_a_plain_directory_passes(self, directory: Path) -> None:
        check_model_files(directory, expected_digest=model_digest(directory))

    def test_pickles_beside_safetensors_are_left_alone(self, directory: Path) -> None:
        (directory / "training_args.bin").write_bytes(b"")
        check_model_files(directory)

    def test_pickled_weights_are_refused_with_the_way_to_convert_them(
        self, directory: Path
    ) -> None:
        (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
        with pytest.raises(UnsupportedBaseModel, match=r"pickles.*save_pretrained"):
            check_model_files(directory)

    @pytest.mark.parametrize(
        ("missing", "told"),
        [
            ("config.json", "no config.json"),
            ("model.safetensors", "no .*safetensors"),
            ("tokenizer.json", "no tokenizer.json"),
        ],
    )
    def test_a_missing_file_is_named(self, directory: Path, missing: str, told: str) -> None:
        (directory / missing).unlink()
        with pytest.raises(UnsupportedBaseModel, match=told):
            check_model_files(directory)

    @pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
    def test_code_of_the_directory_is_refused(self, directory: Path, name: str) -> None:
        (directory / name).write_text(json.dumps({"auto_map": {"AutoModel": "evil.Model"}}))
        with pytest.raises(UnsupportedBaseModel, match="auto_map"):
            check_model_files(directory)

    def test_a_quantisation_of_its_own_is_refused(self, directory: Path) -> None:
        (directory / "config.json").write_text(
            json.dumps({"quantization_config": {"quant_method": "fp8"}})
        )
        with pytest.raises(UnsupportedBaseModel, match="base_dtype"):
            check_model_files(directory)

    def test_an_adapter_is_no_base_model(self, directory: Path) -> None:
        # transformers would load the base model that this file names, wherever it lies
        (directory / "adapter_config.json").write_text("{}")
        with pytest.raises(UnsupportedBaseModel, match="adapter"):
            check_model_files(directory)

    def test_a_configuration_that_is_no_object(self, directory: Path) -> None:
        for text in ("[1]", "{"):
            (directory / "config.json").write_text(text)
            with pytest.raises(UnsupportedBaseModel, match=r"config\.json is not a JSON"):
                check_model_files(directory)

    def test_a_tokenizer_swapped_after_the_plan_is_refused(self, directory: Path) -> None:
        planned = model_digest(directory)
        (directory / "tokenizer.json").write_text('{"model": "trained on the records"}')
        with pytest.raises(UnsupportedBaseModel, match="base_model_digest"):
            check_model_files(directory, expected_digest=planned)

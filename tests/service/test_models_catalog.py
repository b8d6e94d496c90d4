"""Allowed base models: the packaged one and what the operator put there, by digest."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from service.models_catalog import find_model, list_models
from service.settings import Settings
from tests.service.hospital import open_hospital

PACKAGED = "medtext-gpt2-4m"


def model_at(path: Path, weights: bytes = b"weights") -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text('{"max_position_embeddings": 512}')
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes(weights)
    return path


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "models"
    model_at(directory / "small")
    model_at(directory / "org" / "base-1b")
    model_at(directory / ".hidden" / "base")
    model_at(directory / "pickled").joinpath("model.safetensors").rename(
        directory / "pickled" / "pytorch_model.bin"
    )
    return directory


class TestCatalogue:
    def test_holds_the_packaged_model_always(self, tmp_path: Path) -> None:
        (entry,) = list_models(Settings(data_dir=tmp_path))
        assert (entry.id, entry.context_tokens) == (PACKAGED, 256)
        assert len(entry.digest) == 64

    def test_holds_complete_models_of_the_operator(self, tmp_path: Path, models_dir: Path) -> None:
        settings = Settings(data_dir=tmp_path, models_dir=models_dir)
        assert [e.id for e in list_models(settings)] == [PACKAGED, "org/base-1b", "small"]
        found = find_model(settings, "org/base-1b")
        assert found is not None and found.context_tokens == 512

    def test_counts_the_weights_of_the_files(self, tmp_path: Path, models_dir: Path) -> None:
        settings = Settings(data_dir=tmp_path, models_dir=models_dir)
        packaged = find_model(settings, PACKAGED)
        assert packaged is not None
        weights = load_file(packaged.directory / "model.safetensors")
        assert packaged.parameters == sum(tensor.size for tensor in weights.values())

    def test_takes_two_bytes_a_weight_where_a_file_has_no_header(
        self, tmp_path: Path, models_dir: Path
    ) -> None:
        found = find_model(Settings(data_dir=tmp_path, models_dir=models_dir), "small")
        assert found is not None and found.parameters == len(b"weights") // 2

    @pytest.mark.parametrize("name", ["", ".", "..", "org", "../models/small", "/etc", "pickled"])
    def test_is_asked_by_id_never_by_path(
        self, tmp_path: Path, models_dir: Path, name: str
    ) -> None:
        assert find_model(Settings(data_dir=tmp_path, models_dir=models_dir), name) is None

    def test_the_packaged_model_cannot_be_replaced(self, tmp_path: Path, models_dir: Path) -> None:
        fake = model_at(models_dir / PACKAGED)
        found = find_model(Settings(data_dir=tmp_path, models_dir=models_dir), PACKAGED)
        assert found is not None and found.directory != fake

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
    def test_the_digest_follows_every_file_that_makes_the_model(
        self, tmp_path: Path, models_dir: Path, name: str
    ) -> None:
        settings = Settings(data_dir=tmp_path, models_dir=models_dir)
        before = find_model(settings, "small")
        path = models_dir / "small" / name
        path.write_bytes(path.read_bytes() + b" ")
        after = find_model(settings, "small")
        assert before is not None and after is not None and before.digest != after.digest

    def test_the_digest_ignores_what_training_does_not_read(
        self, tmp_path: Path, models_dir: Path
    ) -> None:
        settings = Settings(data_dir=tmp_path, models_dir=models_dir)
        before = find_model(settings, "small")
        (models_dir / "small" / "README.md").write_text("A card.")
        assert find_model(settings, "small") == before


class TestRoutes:
    def test_list_and_retrieve(self, tmp_path: Path, models_dir: Path) -> None:
        with open_hospital(tmp_path, models_dir=models_dir) as hospital:
            assert hospital.client.get("/v1/models").status_code == 401
            assert hospital.client.get(f"/v1/models/{PACKAGED}").status_code == 401
            headers = hospital.people["auditor"].headers
            listed = hospital.client.get("/v1/models", headers=headers).json()
            assert [m["id"] for m in listed["data"]] == [PACKAGED, "org/base-1b", "small"]
            answer = hospital.client.get("/v1/models/org/base-1b", headers=headers)
            assert answer.json() == listed["data"][1]
            assert str(tmp_path) not in answer.text
            absent = hospital.client.get("/v1/models/org/other", headers=headers)
            assert absent.status_code == 404
            assert absent.json()["instance"] == "/v1/models/{model_id}"

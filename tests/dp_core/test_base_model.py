"""Loading: local safetensors only, dtypes of the frozen base, checkpointing (REFUSE, L5)."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BitsAndBytesConfig, PreTrainedTokenizerFast

from dp_core import base_model
from dp_core.adapter_checks import check_supported
from dp_core.base_model import enable_checkpointing, load_base
from dp_core.errors import QuantisationUnavailable, UnsupportedBaseModel
from dp_core.lora import attach_adapters, clip_groups
from dp_core.model_files import model_digest
from dp_core.plan import AdapterPlan, BaseDtype, Checkpointing, Performance
from dp_core.selfcheck import check_engine
from tests.dp_core.models import FAMILIES, VOCABULARY, adapted, tiny_gpt2, tiny_llama

PLAN = AdapterPlan(r=3, alpha=6)


def word_tokenizer(words: int) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="w0", model_max_length=8)


def save(directory: Path, model: Any, words: int = VOCABULARY) -> Path:
    model.save_pretrained(directory)
    word_tokenizer(words).save_pretrained(directory)
    return directory


def backward(model: Any) -> list[torch.Tensor]:
    tokens = torch.arange(24).view(2, 12) % VOCABULARY
    model.train()
    loss = model(input_ids=tokens).logits.float().log_softmax(-1)[..., 5].sum()
    loss.backward()  # torch.autograd.grad does not reach into a reentrant checkpoint
    return [p.grad for p in model.parameters() if p.requires_grad]


class TestLoadBase:
    def test_everything_is_frozen_and_float32_by_default(self, tmp_path: Path) -> None:
        model, tokenizer = load_base(save(tmp_path, tiny_llama()))
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert not any(p.requires_grad for p in model.parameters())
        assert model.config.use_cache is False
        assert len(tokenizer) == VOCABULARY

    @pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
    def test_adapters_on_a_bfloat16_base_are_float32(self, tmp_path: Path, build: Any) -> None:
        performance = Performance(base_dtype="bfloat16")
        model, _ = load_base(save(tmp_path, build()), performance)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        adapted = attach_adapters(model, PLAN, seed=1, performance=performance)
        trained = {p.dtype for p in adapted.parameters() if p.requires_grad}
        assert trained == {torch.float32}
        assert all(bool(torch.isfinite(g).all()) for g in backward(adapted))

    def test_the_plans_digest_is_checked_before_anything_is_opened(self, tmp_path: Path) -> None:
        directory = save(tmp_path, tiny_llama())
        planned = model_digest(directory)
        load_base(directory, expected_digest=planned)
        word_tokenizer(VOCABULARY - 1).save_pretrained(directory)
        with pytest.raises(UnsupportedBaseModel, match="base_model_digest"):
            load_base(directory, expected_digest=planned)

    def test_a_tokenizer_with_more_ids_than_embeddings_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UnsupportedBaseModel, match="tokens than the model has embeddings"):
            load_base(save(tmp_path, tiny_llama(), words=VOCABULARY + 1))

    def test_a_directory_of_pickles_is_refused(self, tmp_path: Path) -> None:
        directory = save(tmp_path, tiny_llama())
        (directory / "model.safetensors").unlink()
        torch.save({"weight": torch.zeros(2)}, directory / "pytorch_model.bin")
        with pytest.raises(UnsupportedBaseModel, match="pickles"):
            load_base(directory)

    def test_the_length_of_a_note_is_not_logged(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Hugging Face warns "sequence length is longer (4711 > 8)": a fact about a patient."""
        note = " ".join(["w7"] * 4711)
        library = logging.getLogger("transformers")
        library.addHandler(caplog.handler)
        try:
            word_tokenizer(VOCABULARY)([note], add_special_tokens=False)
            assert "4711" in caplog.text, "the trap is still there"
            caplog.clear()
            _, tokenizer = load_base(save(tmp_path, tiny_llama()))
            tokenizer([note], add_special_tokens=False)
            assert "4711" not in caplog.text
        finally:
            library.removeHandler(caplog.handler)


class TestQuantised:
    @pytest.mark.parametrize("dtype", ["8bit", "4bit"])
    def test_missing_library_is_told_with_what_to_install(
        self, tmp_path: Path, dtype: BaseDtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        directory = save(tmp_path, tiny_llama())
        with pytest.raises(QuantisationUnavailable, match=rf"'{dtype}'.*'gpu' extra.*bfloat16"):
            load_base(directory, Performance(base_dtype=dtype))

    def test_a_library_that_cannot_run_here_is_told_with_what_to_use(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*args: object, **options: object) -> None:
            raise RuntimeError("no backend")

        monkeypatch.setattr(base_model.AutoModelForCausalLM, "from_pretrained", broken)
        monkeypatch.setattr(
            base_model, "_quantisation", lambda p: BitsAndBytesConfig(load_in_8bit=True)
        )
        directory = save(tmp_path, tiny_llama())
        with pytest.raises(QuantisationUnavailable, match=r"device 'cpu'.*bfloat16"):
            load_base(directory, Performance(base_dtype="8bit"))

    @pytest.mark.filterwarnings("ignore")  # of a library that is not ours
    @pytest.mark.parametrize("dtype", ["8bit", "4bit"])
    @pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
    def test_rows_stay_apart_and_adapters_are_float32(
        self, tmp_path: Path, dtype: BaseDtype, build: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra 'gpu')")
        performance = Performance(base_dtype=dtype)
        model, _ = load_base(save(tmp_path, build()), performance)
        adapted = attach_adapters(model, PLAN, seed=1, performance=performance)
        check_supported(adapted)
        groups = clip_groups(adapted)
        assert {p.dtype for g in groups for p in g.parameters} == {torch.float32}
        check_engine(adapted, groups, vocabulary=VOCABULARY, seed=1, performance=performance)
        assert "MatMul8bitLt" not in caplog.text, "a line for each product tells their number"


class TestCheckpointing:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_gradients_are_the_same_in_every_mode(self, family: str) -> None:
        found = {}
        modes: tuple[Checkpointing, ...] = ("off", "reentrant", "non_reentrant")
        for mode in modes:
            model = adapted(family)
            enable_checkpointing(model, Performance(checkpointing=mode))
            assert model.base_model.model.is_activation_checkpointing == (mode != "off")
            found[mode] = backward(model)
        assert all(float(gradient.norm()) > 0 for gradient in found["off"])
        for mode in modes[1:]:
            for plain, recomputed in zip(found["off"], found[mode], strict=True):
                assert torch.allclose(plain, recomputed, rtol=1e-5, atol=1e-7)

"""The least a trainer holds, against numbers worked out by hand for known models."""

from __future__ import annotations

from typing import Any

import pytest

from dp_core.memory import GIB, ModelShape, memory_need, weight_bytes
from dp_core.plan import AdapterPlan, Performance

GPT2 = {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None}
LLAMA_1B = {
    "vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192,
    "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA_7B = {
    "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 11008,
    "num_attention_heads": 32, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_8B = {
    "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip
COUNTS = {"gpt2": 124_439_808, "1b": 1_235_814_400, "7b": 6_738_415_616, "8b": 8_030_261_248}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2, "1b": LLAMA_1B, "7b": LLAMA_7B, "8b": LLAMA_8B
}  # fmt: skip


def shape(name: str) -> ModelShape:
    made = ModelShape.of(CONFIGS[name], parameters=COUNTS[name])
    assert made is not None
    return made


class TestWeights:
    @pytest.mark.parametrize(
        ("name", "dtype", "expected"),
        [
            ("gpt2", "float32", 497_759_232),
            ("1b", "bfloat16", 2_471_628_800),
            ("7b", "bfloat16", 13_476_831_232),
            # 2 * 2 * 32000 * 4096 for embeddings and head, 0.5625 for each of 6,476,271,616
            ("7b", "4bit", 524_288_000 * 1 + 3_642_902_784),
            # 2 * 2 * 128256 * 4096, and one byte for each of 6,979,588,096
            ("8b", "8bit", 2_101_346_304 + 6_979_588_096),
            ("8b", "4bit", 2_101_346_304 + 3_926_018_304),
        ],
    )
    def test_by_dtype(self, name: str, dtype: str, expected: int) -> None:
        assert weight_bytes(shape(name), dtype) == expected


class TestNeed:
    def test_of_an_8b_job_in_4_bit_under_checkpointing(self) -> None:
        """4 patients of 512 tokens, rank 16 on all linear layers of the blocks."""
        need = memory_need(
            shape("8b"),
            adapter=AdapterPlan(r=16, alpha=32),
            performance=Performance(
                patients_per_microbatch=4, base_dtype="4bit", checkpointing="non_reentrant"
            ),
            tokens_per_row=512,
        )
        # 32 blocks * rank 16 * (2h + 2kv + 2h + 2(h + i)) = 512 * 55,296
        assert need.adapters == 20 * 512 * 55_296
        # 2,048 tokens: 32 inputs of 4,096 values of 2 bytes, and one block of 55,296 values
        assert need.activations == 32 * 2048 * 4096 * 2 + 2048 * 55_296 * 2
        assert need.logits == 2048 * 128_256 * (2 + 4)
        assert need.total == need.weights + need.adapters + need.activations + need.logits

    def test_checkpointing_trades_blocks_for_their_inputs(self) -> None:
        def activations(mode: Any) -> int:
            performance = Performance(checkpointing=mode, base_dtype="bfloat16")
            return memory_need(
                shape("1b"), adapter=AdapterPlan(), performance=performance, tokens_per_row=256
            ).activations

        # 2,048 tokens, blocks of 6 * 2048 + 2 * 512 + 2 * 8192 = 29,696 values
        assert activations("off") == 16 * 2048 * 29_696 * 2
        assert activations("non_reentrant") == 16 * 2048 * 2048 * 2 + 2048 * 29_696 * 2

    @pytest.mark.parametrize(
        ("name", "dtype", "device_gib", "fits"),
        [
            ("1b", "bfloat16", 8, True),
            ("7b", "bfloat16", 12, False),
            ("7b", "bfloat16", 24, True),
            ("7b", "4bit", 8, True),
            ("8b", "float32", 24, False),
            ("8b", "bfloat16", 16, False),
            ("8b", "bfloat16", 24, True),
            ("8b", "4bit", 6, False),
            ("8b", "4bit", 12, True),
        ],
    )
    def test_what_fits_on_which_device(
        self, name: str, dtype: Any, device_gib: int, fits: bool
    ) -> None:
        performance = Performance(
            base_dtype=dtype, checkpointing="non_reentrant", patients_per_microbatch=4
        )
        need = memory_need(
            shape(name), adapter=AdapterPlan(), performance=performance, tokens_per_row=256
        )
        assert (need.total <= device_gib * GIB) is fits


@pytest.mark.parametrize("missing", ["vocab_size", "hidden_size", "num_hidden_layers"])
def test_a_configuration_that_does_not_tell_gives_no_shape(missing: str) -> None:
    config = {k: v for k, v in LLAMA_7B.items() if k != missing}
    assert ModelShape.of(config, parameters=1) is None

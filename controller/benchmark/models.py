"""The base models of a suite: the packaged one, a folder, or random weights of a known size.

No weights of that size travel with the package or can be fetched here, so the `gpu` suite
uses random ones: throughput, memory and controller time are those of the real model, while
perplexities only say whether training moves.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from controller.errors import SettingInvalid

PACKAGED = "medtext-gpt2-4m"
RANDOM = ("random-gpt2-small", "random-llama-1b")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def model_folder(name: str, packaged: Path, scratch: Path) -> Path:
    """Directory of a base model by its name in a suite; random ones are built once.

    Raises:
        SettingInvalid: no such name.
    """
    if name == PACKAGED:
        return packaged
    if name not in RANDOM:
        raise SettingInvalid("model", f"choose one of {', '.join((PACKAGED, *RANDOM))}")
    folder = scratch / name
    if not (folder / "config.json").is_file():
        _build(name, packaged, folder)
    return folder


def _build(name: str, packaged: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(_config(name), dtype=torch.bfloat16)
    model.save_pretrained(partial)
    for file in _TOKENIZER_FILES:
        if (packaged / file).is_file():
            shutil.copy(packaged / file, partial / file)
    partial.rename(folder)


def _config(name: str) -> Any:
    from transformers import GPT2Config, LlamaConfig

    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    if name == "random-gpt2-small":  # 124 million parameters
        return GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **ids)
    return LlamaConfig(  # 1.1 billion parameters
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        **ids,
    )

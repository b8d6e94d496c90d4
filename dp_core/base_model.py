"""The frozen base model of a local directory, and its activations under checkpointing.

Nothing is downloaded and no code of a model directory is run: safetensors only,
`trust_remote_code` off. The dtype of the base changes speed and memory, not the guarantee:
the per-patient bound holds for whatever gradients the frozen base gives (E5, G11).
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from dp_core.errors import QuantisationUnavailable, UnsupportedBaseModel
from dp_core.model_files import check_model_files
from dp_core.plan import Performance

# A tokenizer warns about text longer than this, with the length of the text (R3).
_NO_LENGTH_WARNING = 10**30


def load_base(
    directory: Path,
    performance: Performance = Performance(),  # frozen
    *,
    expected_digest: str | None = None,
) -> tuple[Any, Any]:
    """Model (frozen, in `performance.base_dtype`) and tokenizer of a local directory.

    With `expected_digest`, the plan's `base_model_digest`, the files are read again and
    compared: the tokenizer and the weights are then those the plan was made with (L5).

    ===========  ==========================================================
    base_dtype   weights of the frozen base
    ===========  ==========================================================
    float32      as they are, widened
    bfloat16     rounded
    8bit         bitsandbytes int8 without outlier columns, see `_quantisation`
    4bit         bitsandbytes nf4 with bfloat16 arithmetic
    ===========  ==========================================================

    Raises:
        UnsupportedBaseModel: pickled weights, own code, other files than planned, or a
            tokenizer with more ids than the model has embeddings.
        QuantisationUnavailable: bitsandbytes is missing or does not run on the device.
    """
    check_model_files(directory, expected_digest=expected_digest)
    placement: dict[str, Any] = {}
    if performance.base_dtype in ("8bit", "4bit"):
        placement = {
            "quantization_config": _quantisation(performance),
            "device_map": {"": performance.device},
        }
    dtype = torch.float32 if performance.base_dtype == "float32" else torch.bfloat16
    model = _from_directory(directory, performance, dtype=dtype, **placement)
    tokenizer = AutoTokenizer.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False
    )
    tokenizer.model_max_length = _NO_LENGTH_WARNING
    check_tokenizer(tokenizer, model)
    model.config.use_cache = False
    model.requires_grad_(False)
    return model, tokenizer


def _from_directory(directory: Path, performance: Performance, **options: Any) -> Any:
    try:
        return AutoModelForCausalLM.from_pretrained(
            directory,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            **options,
        )
    except (ImportError, RuntimeError, ValueError) as problem:
        if "quantization_config" not in options:
            raise
        raise QuantisationUnavailable(
            f"base_dtype: bitsandbytes cannot hold {performance.base_dtype} weights on device "
            f"'{performance.device}'. Use base_dtype 'bfloat16', or a CUDA device with a "
            "current bitsandbytes (the 'gpu' extra of this package)."
        ) from problem


def _quantisation(performance: Performance) -> BitsAndBytesConfig:
    """Weights in 8 or 4 bits whose arithmetic keeps rows apart.

    LLM.int8() takes every column in which any token of the batch exceeds a threshold out of
    the 8-bit product (2208.07339, 3.2): the precision of one row then follows from the
    others. Threshold 0 turns that off and leaves a scale per token (L3).
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise QuantisationUnavailable(
            f"base_dtype: '{performance.base_dtype}' needs bitsandbytes, which is not "
            "installed. Install the 'gpu' extra of this package, or use base_dtype 'bfloat16'."
        )
    if performance.base_dtype == "8bit":
        # It logs a line for each product, whose number tells how many rows were drawn (R1).
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def check_tokenizer(tokenizer: Any, model: Any) -> None:
    """Refuses a vocabulary that the base model was not trained with (L5).

    Words added to a tokenizer, from private text perhaps, have no row in the embedding.
    Added within the padding of an embedding they cannot be seen here; the digest of the
    plan covers that, since the tokenizer files are part of it.

    Raises:
        UnsupportedBaseModel: more ids than embeddings.
    """
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        raise UnsupportedBaseModel(
            "base_model: the tokenizer knows more tokens than the model has embeddings. Use the "
            "base model's own tokenizer; tokens fitted to the records would not be private."
        )


def enable_checkpointing(model: Any, performance: Performance) -> None:
    """Recomputes activations in the backward pass as `performance.checkpointing` says.

    The input of the first block is made to require a gradient in every mode. A frozen
    embedding gives none, and then a reentrant checkpoint returns no gradients at all (D4)
    and the hooks of the first adapted layer have no input to compare against. What it costs
    is one more product in the first block.
    """
    model.enable_input_require_grads()
    if performance.checkpointing != "off":
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={
                "use_reentrant": performance.checkpointing == "reentrant"
            }
        )

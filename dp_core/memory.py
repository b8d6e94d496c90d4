"""The least memory that a job's trainer needs on its device: what exceeds it cannot fit.

A lower bound, counted from shapes: what this engine certainly holds at once, with no allowance
for the device's own libraries or an allocator's gaps. It refuses the hopeless before anything
is reserved; a job that passes may still run out of memory. All of it is public: shapes and
settings, no data. (torch-free)

With N = patients a microbatch times tokens a row, h, i, kv the widths of the residual stream,
the MLP and keys, L blocks, V words, b bytes of an activation (4 in float32, else 2):

==============  ===============================================================
part            bytes
==============  ===============================================================
base weights    float32 4, bfloat16 2, 8bit 1, 4bit 1/2 + 1/16 (a float32 scale
                for 64 weights, 2305.14314) each; embeddings stay at 2 when quantised
adapters        20 for each parameter: weight, two moments, average, sum (float32)
activations     L * N * (6h + 2kv + 2i) * b; under checkpointing (1604.06174) L * N * h * b
                and those of one block
logits          N * V * (b + 4): as they leave the model, and their float32 gradient
==============  ===============================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dp_core.plan import AdapterPlan, Performance

GIB = 2**30
ADAPTER_BYTES = 20
QUANTISED_BYTES = {"8bit": 1.0, "4bit": 0.5 + 4 / 64}
PLAIN_BYTES = {"float32": 4, "bfloat16": 2}

_WIDTHS = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "vocabulary": ("vocab_size",),
    "heads": ("num_attention_heads", "n_head"),
}


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Widths of a decoder, from its configuration."""

    parameters: int
    hidden: int
    layers: int
    vocabulary: int
    intermediate: int
    key_value: int  # width of the keys of all heads together
    has_tied_embeddings: bool

    @classmethod
    def of(cls, config: Mapping[str, Any], *, parameters: int) -> ModelShape | None:
        """None where the configuration does not tell."""
        found = {
            name: next((config[key] for key in keys if isinstance(config.get(key), int)), 0)
            for name, keys in _WIDTHS.items()
        }
        if not all(value > 0 for value in found.values()):
            return None
        heads, hidden = found.pop("heads"), found["hidden"]
        key_heads = config.get("num_key_value_heads") or heads
        head_width = config.get("head_dim") or hidden // heads
        return cls(
            parameters=parameters,
            intermediate=config.get("intermediate_size") or config.get("n_inner") or 4 * hidden,
            key_value=key_heads * head_width,
            has_tied_embeddings=bool(config.get("tie_word_embeddings", True)),
            **found,
        )

    @property
    def embeddings(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.has_tied_embeddings else 2)

    def adapter_parameters(self, adapter: AdapterPlan) -> int:
        """Rank times the widths of what is adapted, at least.

        Named modules are counted as the narrowest there is; q, k and v as one fused layer.
        """
        h, kv, i = self.hidden, self.key_value, self.intermediate
        if adapter.target_modules:
            each = len(adapter.target_modules) * (h + kv)
        else:
            each = (2 * h + 2 * kv) + 2 * h + 2 * (h + i)
        return self.layers * adapter.r * each


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """Bytes by part."""

    weights: int
    adapters: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.adapters + self.activations + self.logits


def weight_bytes(shape: ModelShape, base_dtype: str) -> int:
    """Of the frozen base."""
    if base_dtype in PLAIN_BYTES:
        return shape.parameters * PLAIN_BYTES[base_dtype]
    embedded = min(shape.embeddings, shape.parameters)
    return int(2 * embedded + QUANTISED_BYTES[base_dtype] * (shape.parameters - embedded))


def memory_need(
    shape: ModelShape, *, adapter: AdapterPlan, performance: Performance, tokens_per_row: int
) -> MemoryNeed:
    """The least that one process of the job holds at once."""
    tokens = performance.patients_per_microbatch * tokens_per_row
    each = 4 if performance.base_dtype == "float32" and not performance.autocast else 2
    block = tokens * (6 * shape.hidden + 2 * shape.key_value + 2 * shape.intermediate) * each
    if performance.checkpointing == "off":
        activations = shape.layers * block
    else:
        activations = shape.layers * tokens * shape.hidden * each + block
    return MemoryNeed(
        weights=weight_bytes(shape, performance.base_dtype),
        adapters=ADAPTER_BYTES * shape.adapter_parameters(adapter),
        activations=activations,
        logits=tokens * shape.vocabulary * (each + 4),
    )

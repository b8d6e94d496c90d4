"""Refusals at submission: what a request may bring that cannot be private (privacy.md 13).

Two documents come from outside: a PEFT adapter configuration, and the settings of a trainer
as other libraries name them. Both are read against closed tables; a field that is not in the
table is refused too, since nobody has shown that it keeps the bound. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dp_core.errors import (
    DpCoreError,
    LeakyQuantity,
    PackedSequences,
    PlanInvalid,
    PrecisionTooLow,
    SamplerNotPoisson,
    TiedWeights,
    UnsupportedAdapter,
    UnsupportedInitialisation,
)

# Fields of `LoraConfig` without influence on the bound, whatever their value.
_FREE_FIELDS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",
        "megatron_core",
        "peft_version",
        "qalora_group_size",  # without use_qalora it does nothing
        "r",
        "revision",
        "runtime_config",
        "use_rslora",  # alpha / sqrt(r) for alpha / r: a public constant
    }
)
# Fields with a neutral value; the text says why any other is refused and what to do.
_ADAPTER_REFUSALS: dict[str, tuple[type[DpCoreError], str]] = {
    "use_dora": (
        UnsupportedAdapter,
        "DoRA normalises by the norm of the adapted weight, and its magnitude has no "
        "per-patient gradient. Set it to false",
    ),
    "modules_to_save": (
        UnsupportedAdapter,
        "these modules would be trained outside the adapters, unclipped. Leave it out",
    ),
    "trainable_token_indices": (
        UnsupportedAdapter,
        "rows of the embedding would be trained: which rows move tells which words occur. "
        "Leave it out",
    ),
    "target_parameters": (
        UnsupportedAdapter,
        "weights of experts see tokens, not patients. Leave it out and adapt linear layers",
    ),
    "layer_replication": (
        UnsupportedAdapter,
        "the adapted model is no longer the registered base. Save the replicated model and "
        "register it as a base of its own",
    ),
    "rank_pattern": (
        UnsupportedAdapter,
        "one rank holds for all layers, since a pattern may have been fitted to data. Use r",
    ),
    "alpha_pattern": (
        UnsupportedAdapter,
        "one alpha holds for all layers, since a pattern may have been fitted to data. Use "
        "lora_alpha",
    ),
    "lora_bias": (
        UnsupportedAdapter,
        "the bias of B is no tensor of a clip group. Set it to false",
    ),
    "use_qalora": (
        UnsupportedAdapter,
        "pooled inputs are no plain LoRA. Set it to false; choose base_dtype '4bit' for memory",
    ),
    "velora_config": (
        UnsupportedAdapter,
        "its projection is taken from the statistics of a batch. Leave it out; use "
        "gradient checkpointing for memory",
    ),
    "alora_invocation_tokens": (
        UnsupportedAdapter,
        "adapters that start at a token are no plain LoRA. Leave it out",
    ),
    "monteclora_config": (
        UnsupportedAdapter,
        "it adds trainable tensors and a loss of its own. Leave it out",
    ),
    "kasa_config": (
        UnsupportedAdapter,
        "it adds a trainable diagonal and cuts the base weights. Leave it out",
    ),
    "use_bdlora": (UnsupportedAdapter, "block-diagonal halves are no plain LoRA. Leave it out"),
    "arrow_config": (
        UnsupportedAdapter,
        "routing among several adapters is no plain LoRA. Leave it out",
    ),
    "megatron_config": (UnsupportedAdapter, "parallel linear layers are not known. Leave it out"),
    "ensure_weight_tying": (
        TiedWeights,
        "a shared adapter would be clipped once for each use. Set it to false",
    ),
    "eva_config": (
        UnsupportedInitialisation,
        "EVA reads the records' activations, uncharged. Leave it out",
    ),
    "corda_config": (
        UnsupportedInitialisation,
        "CorDA reads the records' covariances, uncharged. Leave it out",
    ),
    "lora_ga_config": (
        UnsupportedInitialisation,
        "LoRA-GA reads the records' gradients, uncharged. Leave it out",
    ),
    "loftq_config": (
        UnsupportedAdapter,
        "LoftQ rewrites the base weights. Leave it out; choose base_dtype '4bit' for memory",
    ),
}
_RANDOM_INITS = frozenset({"true", "gaussian", "orthogonal"})
_DATA_DRIVEN_INITS = frozenset({"eva", "corda", "lora_ga"})
# From the base weights alone, so nothing leaks; but the base is changed, or A or B frozen.
_BASE_DRIVEN_INITS = ("pissa", "olora", "loftq", "mica")
_EMBEDDING_OR_HEAD = frozenset(
    {
        "embed_in",
        "embed_out",
        "embed_positions",
        "embed_tokens",
        "embeddings",
        "lm_head",
        "position_embeddings",
        "word_embeddings",
        "wpe",
        "wte",
    }
)


def check_adapter_config(config: Any) -> None:
    """Refuses a PEFT configuration whose training would not be private.

    `config` is a `LoraConfig`, or a mapping such as an `adapter_config.json`. Whether a
    target is a linear layer is seen when the adapters are attached; names of embeddings,
    heads and convolutions are refused here already.

    ====================================  =======================================
    init_lora_weights                     answer
    ====================================  =======================================
    true, gaussian, orthogonal            accepted: a public seed decides
    pissa, pissa_niter_N, olora, loftq,   `UnsupportedAdapter`: private, but the
    mica                                  base changes, or half the adapter freezes
    eva, corda, lora_ga                   `UnsupportedInitialisation`: reads data
    false, anything else                  `UnsupportedInitialisation`: unknown
    ====================================  =======================================

    Raises:
        UnsupportedAdapter, UnsupportedInitialisation, TiedWeights: as tabled.
    """
    fields = dict(config if isinstance(config, Mapping) else config.to_dict())
    _check_kind(fields)
    # First, since the field beside it would be refused for a lesser reason.
    _check_initialisation(fields.pop("init_lora_weights", True))
    _check_targets(fields.pop("target_modules", None))
    for name, value in fields.items():
        if name in _FREE_FIELDS or not value:
            continue
        error, reason = _ADAPTER_REFUSALS.get(
            name, (UnsupportedAdapter, "this field is not known to keep the bound. Leave it out")
        )
        raise error(f"adapter.{name}: {reason}.")


def _check_kind(fields: dict[str, Any]) -> None:
    if _text(fields.pop("peft_type", None) or "LORA") != "lora":
        raise UnsupportedAdapter("adapter.peft_type: only LORA has clip groups here. Use LORA.")
    if _text(fields.pop("task_type", None) or "CAUSAL_LM") != "causal_lm":
        raise UnsupportedAdapter(
            "adapter.task_type: other tasks train a head outside the adapters. Use CAUSAL_LM."
        )
    if _text(fields.pop("bias", None) or "none") != "none":
        raise UnsupportedAdapter(
            "adapter.bias: biases of the base model have no per-patient gradient. Use 'none'."
        )


def _check_initialisation(value: object) -> None:
    name = _text(value)
    if name in _RANDOM_INITS:
        return
    if name.startswith(_BASE_DRIVEN_INITS):
        raise UnsupportedAdapter(
            "adapter.init_lora_weights: it reads no data, but the base weights change or half "
            "of the adapter freezes, so that the adapter does not fit the registered base. Use "
            "true, 'gaussian' or 'orthogonal'."
        )
    reason = (
        "it reads the records before anything is charged"
        if name in _DATA_DRIVEN_INITS
        else "it is not known to be independent of the records"
    )
    raise UnsupportedInitialisation(
        f"adapter.init_lora_weights: {reason}. Use true, 'gaussian' or 'orthogonal'."
    )


def _check_targets(targets: object) -> None:
    if targets is None:
        return
    names = [targets] if isinstance(targets, str) else targets
    if not isinstance(names, (list, tuple, set, frozenset)):
        raise UnsupportedAdapter("adapter.target_modules: not a list of names. Use 'all-linear'.")
    ends = {str(name).rsplit(".", 1)[-1].lower() for name in names}
    if ends & _EMBEDDING_OR_HEAD or any("conv" in end for end in ends):
        raise UnsupportedAdapter(
            "adapter.target_modules: adapters on embeddings, output heads and convolutions have "
            "no per-patient gradient. Use 'all-linear', or linear layers of the blocks."
        )


def _text(value: object) -> str:
    """Lower-case text of a JSON value or of a member of PEFT's string enumerations."""
    return str(getattr(value, "value", value)).lower()


_PACKING = "text of several patients would share a row and a loss. Leave it out: rows are padded"
_SHAPED_BY_DATA = (
    "batches follow the data, and the accounting holds for Poisson draws only. Leave it out"
)
_PRIVATE_CHOICE = (
    "the choice reads a loss on private records that nobody paid for. Use the hold-out loss that "
    "the plan pays for, or leave it out"
)
_COUNT = (
    "a count of the private data would be published. Leave it out; batch_size_expected and "
    "patients_public are the numbers that may be shown"
)
_EPOCHS = (
    "the number of steps would follow from the number of records. State n_epochs, which counts "
    "passes over patients_public, or steps_max"
)
_USER_SEED = (
    "whoever knows the seed can subtract the noise. Leave it out; `seed` of the plan governs the "
    "adapter's initialisation alone"
)
_SETTINGS_REFUSALS: dict[str, tuple[type[DpCoreError], str]] = {
    "packing": (PackedSequences, _PACKING),
    "sample_packing": (PackedSequences, _PACKING),
    "eval_packing": (PackedSequences, _PACKING),
    "neat_packing": (PackedSequences, _PACKING),
    "padding_free": (PackedSequences, _PACKING),
    "group_by_length": (SamplerNotPoisson, _SHAPED_BY_DATA),
    "dataloader_drop_last": (SamplerNotPoisson, _SHAPED_BY_DATA),
    "drop_last": (SamplerNotPoisson, _SHAPED_BY_DATA),
    "shuffle": (SamplerNotPoisson, _SHAPED_BY_DATA),
    "data_seed": (PlanInvalid, _USER_SEED),
    "noise_seed": (PlanInvalid, _USER_SEED),
    "num_train_epochs": (LeakyQuantity, _EPOCHS),
    "include_num_input_tokens_seen": (LeakyQuantity, _COUNT),
    "early_stopping_patience": (LeakyQuantity, _PRIVATE_CHOICE),
    "load_best_model_at_end": (LeakyQuantity, _PRIVATE_CHOICE),
    "metric_for_best_model": (LeakyQuantity, _PRIVATE_CHOICE),
    "pure_bf16": (
        PrecisionTooLow,
        "adapters and sums would round. Leave it out; base_dtype 'bfloat16' and autocast give "
        "the speed",
    ),
}


def check_training_settings(settings: Mapping[str, Any]) -> None:
    """Refuses trainer settings, as other libraries name them, that cannot be private.

    A caller that brings a configuration from such a library learns which line breaks the
    promise and what takes its place; a line without effect (false, none, 0) passes.

    Raises:
        PackedSequences, SamplerNotPoisson, PlanInvalid, LeakyQuantity, PrecisionTooLow:
            as tabled in `_SETTINGS_REFUSALS`.
    """
    for name, value in settings.items():
        if not value or name not in _SETTINGS_REFUSALS:
            continue
        error, reason = _SETTINGS_REFUSALS[name]
        if issubclass(error, PlanInvalid):
            problem, remedy = reason.split(". ", 1)
            raise error(name, problem, f"{remedy}.")
        raise error(f"{name}: {reason}.")

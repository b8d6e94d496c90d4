"""The base model that travels with the package; importing this loads no torch.

Its card, with the attribution that must travel with any copy, lies beside the weights.
"""

from __future__ import annotations

from pathlib import Path

MODEL_NAME = "medtext-gpt2-4m"


def path() -> Path:
    """Directory of the packaged demo model: config, tokenizer and half-precision weights."""
    return Path(__file__).resolve().parent / MODEL_NAME

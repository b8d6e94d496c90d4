"""The process that speaks: `python -m service.chat.process`, one line of JSON for each step.

Reads requests from standard input, answers on standard output, keeps two models in memory.
Loads torch, which the API never does. What it was asked and what it said are in no log, and a
failure leaves as the bare word `failed`.

==============================  ==================================================
line in                         lines out
==============================  ==================================================
`{"id", "model", "prompt", …}`  `{"id", "text"}` …, then `{"id", "done", …}` or
                                `{"id", "failed": true}`
`{"cancel": id}`                the answer to `id` ends at its next token
==============================  ==================================================
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from peft import PeftModel
from transformers.utils import logging as transformers_logging

from dp_core.base_model import load_base

MODELS_KEPT = 2
UNFINISHED = "\ufffd"  # half of a character: its other half comes with the next token


class Speaker:
    """Models in memory, newest last, and the requests that were called off."""

    def __init__(self) -> None:
        self._models: OrderedDict[str, tuple[Any, Any]] = OrderedDict()
        self.cancelled: set[int] = set()

    def answer(self, asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Pieces of text, then why it ended and how many tokens it took."""
        model, tokenizer = self._model(asked)
        prompt = tokenizer(asked["prompt"], return_tensors="pt")["input_ids"]
        room = _context(model) - asked["tokens_max"]
        prompt = prompt[:, -max(1, room) :]
        said: list[int] = []
        shown, reason = "", "length"
        for token in _tokens(model, prompt, asked):
            if token == tokenizer.eos_token_id:
                reason = "stop"
                break
            said.append(token)
            text = tokenizer.decode(said, skip_special_tokens=True)
            if not text.endswith(UNFINISHED) and text != shown:
                yield {"text": text[len(shown) :]}
                shown = text
            if asked["id"] in self.cancelled or time.monotonic() > asked["until"]:
                break
        yield {"done": reason, "prompt_tokens": prompt.shape[1], "completion_tokens": len(said)}

    def _model(self, asked: dict[str, Any]) -> tuple[Any, Any]:
        key = asked["model"]
        if key not in self._models:
            while len(self._models) >= MODELS_KEPT:
                self._models.popitem(last=False)
            base, tokenizer = load_base(
                Path(asked["base_dir"]), expected_digest=asked["base_digest"]
            )
            adapted = PeftModel.from_pretrained(base, asked["adapter_dir"], local_files_only=True)
            self._models[key] = (adapted.eval(), tokenizer)
        self._models.move_to_end(key)
        return self._models[key]


def _context(model: Any) -> int:
    config = model.config
    names = ("max_position_embeddings", "n_positions", "seq_length")
    return next((n for name in names if (n := getattr(config, name, None))), 2048)


@torch.inference_mode()
def _next(model: Any, tokens: torch.Tensor, past: Any) -> tuple[torch.Tensor, Any]:
    out = model(input_ids=tokens, past_key_values=past, use_cache=True)
    return out.logits[0, -1].float(), out.past_key_values


def _tokens(model: Any, prompt: torch.Tensor, asked: dict[str, Any]) -> Iterator[int]:
    """At most `tokens_max`; greedy at temperature 0, else from the smallest set of mass top_p."""
    generator = torch.Generator().manual_seed(asked["seed"])
    tokens, past = prompt, None
    for _ in range(asked["tokens_max"]):
        scores, past = _next(model, tokens, past)
        token = _choose(scores, asked["temperature"], asked["top_p"], generator)
        yield token
        tokens = torch.tensor([[token]])


def _choose(
    scores: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator
) -> int:
    if temperature == 0:
        return int(scores.argmax())
    chances, order = torch.softmax(scores / temperature, dim=-1).sort(descending=True)
    kept = chances * (chances.cumsum(0) - chances < top_p)
    return int(order[torch.multinomial(kept, 1, generator=generator)])


def main() -> None:
    """Until standard input ends. A thread reads it, so that a cancel is seen at once."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    speaker, waiting = Speaker(), SimpleQueue[dict[str, Any] | None]()

    def read() -> None:
        for line in sys.stdin:
            asked = json.loads(line)
            if "cancel" in asked:
                speaker.cancelled.add(asked["cancel"])
            else:
                waiting.put(asked)
        waiting.put(None)

    threading.Thread(target=read, daemon=True).start()
    while (asked := waiting.get()) is not None:
        asked["until"] = time.monotonic() + asked["seconds"]
        try:
            for step in speaker.answer(asked):
                _tell({"id": asked["id"], **step})
        except Exception:  # its text may quote the prompt
            _tell({"id": asked["id"], "failed": True})
        speaker.cancelled.discard(asked["id"])


def _tell(step: dict[str, Any]) -> None:
    print(json.dumps(step), flush=True)


if __name__ == "__main__":
    main()

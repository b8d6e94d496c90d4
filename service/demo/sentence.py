"""Continues one public prompt with the base model and with the adapter, in its own process.

    python -m service.demo.sentence --model DIR --adapter DIR --prompt TEXT

Prints one JSON object `{"before": …, "after": …}`. Started by the demonstration as a child,
so that the client itself never loads torch. Sampling is seeded and almost greedy.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

TOKENS_NEW = 70
TEMPERATURE = 0.3
TOP_K = 20
SEED = 7


def continuations(model_dir: Path, adapter_dir: Path, prompt: str) -> dict[str, str]:
    """The prompt's continuation before and after fine-tuning."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, local_files_only=True
    ).eval()

    def continued(network: torch.nn.Module) -> str:
        torch.manual_seed(SEED)
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            out = network.generate(  # type: ignore[operator]
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=TOKENS_NEW,
                do_sample=True,
                temperature=TEMPERATURE,
                top_k=TOP_K,
                pad_token_id=tokenizer.pad_token_id,
            )
        return shortened(tokenizer.decode(out[0], skip_special_tokens=True))

    before = continued(model)
    adapted = PeftModel.from_pretrained(model, adapter_dir, local_files_only=True).eval()
    return {"before": before, "after": continued(adapted)}


def shortened(text: str) -> str:
    """Whitespace made one, and what follows the last full sentence left out."""
    text = " ".join(text.split())
    end = max(text.rfind(". "), len(text) - 1 if text.endswith(".") else -1)
    return text[: end + 1] if end > 40 else text + " …"


def main() -> None:
    parser = argparse.ArgumentParser(description="One sentence before and after fine-tuning")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--prompt", required=True)
    arguments = parser.parse_args()
    print(json.dumps(continuations(arguments.model, arguments.adapter, arguments.prompt)))


if __name__ == "__main__":
    main()

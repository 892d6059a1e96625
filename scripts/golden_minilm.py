#!/usr/bin/env python3
"""Makes crates/testkit/fixtures/minilm.json: what Transformers computes with the real all-MiniLM-L6-v2.

Run it with `make golden`, which fetches the model first. The model has no classifier: it gets one of 4 labels with
weight[i, j] = sin(1 + 384 i + j), computed in float64 and rounded, and no bias.
"""

import json
import math
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "assets/models/all-MiniLM-L6-v2"
FIXTURE = ROOT / "crates/testkit/fixtures/minilm.json"
LABELS, MAX_LENGTH = 4, 128

TEXTS = [
    "Rain.",
    "The committee approved the budget after a short debate.",
    "Oil prices fell 3.5% on Tuesday, their steepest drop since March.",
    "She couldn't find her keys, so she climbed in through the kitchen window!",
    "Is a heat pump cheaper to run than a gas boiler in a small, poorly insulated house?",
    "Café owners in Zürich and São Paulo agree: naïve pricing doesn't pay.",
    "The hospital's records never leave the building; only the model's small updates travel to the server each night.",
    "The ship left the harbour before dawn with a cargo of grain, timber and wool. " * 12,
]


def main():
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    model, info = transformers.BertForSequenceClassification.from_pretrained(
        MODEL, num_labels=LABELS, dtype=torch.float32, output_loading_info=True
    )
    missing = sorted(info["missing_keys"])
    assert missing == ["classifier.bias", "classifier.weight"], f"the checkpoint lacks {missing}"
    hidden = model.config.hidden_size
    with torch.no_grad():
        head = [[math.sin(1 + i * hidden + j) for j in range(hidden)] for i in range(LABELS)]
        model.classifier.weight.copy_(torch.tensor(head, dtype=torch.float64))
        model.classifier.bias.zero_()
    model.eval()
    cases = []
    for text in TEXTS:
        # One at a time, so that no value here depends on padding.
        inputs = tokenizer(text, truncation=True, max_length=MAX_LENGTH, padding=False, return_tensors="pt")
        with torch.no_grad():
            pooled = model.bert(**inputs).pooler_output[0]
            logits = model(**inputs).logits[0]
        cases.append({
            "text": text,
            "input_ids": inputs["input_ids"][0].tolist(),
            "pooled_first_8": pooled[:8].tolist(),
            "logits": logits.tolist(),
        })
    assert len(cases[-1]["input_ids"]) == MAX_LENGTH, "the last text is there to be cut"
    about = {
        "made_by": "scripts/golden_minilm.py",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "model": "all-MiniLM-L6-v2, with the pooler of its checkpoint",
        "classifier": "weight[i, j] = sin(1 + 384 i + j), bias 0, 4 labels",
        "max_length": MAX_LENGTH,
    }
    # A case a line keeps the file readable.
    lines = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in cases)
    head = json.dumps(about, indent=1)[:-2]
    FIXTURE.write_text(f'{head},\n "cases": [\n{lines}\n ]\n}}\n', encoding="utf-8")
    json.loads(FIXTURE.read_text(encoding="utf-8"))
    print(f"{FIXTURE}: {len(cases)} texts")


if __name__ == "__main__":
    main()

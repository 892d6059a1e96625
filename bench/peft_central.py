#!/usr/bin/env python3
"""What Hugging Face PEFT reaches with all data in one place: the yardstick of a classification run of FedPipe.

    .venv-interop/bin/python bench/peft_central.py RUN [--batch 16] [--learning-rate 3e-3] [--seed 42]

RUN is a finished run's folder. An adapter of the same shape (its targets, ranks and alphas, fresh) trains over the same
base model on all of the run's training texts, shuffled, until it has seen as many tokens as all silos together trained
on; the test file is then labelled. bf16 autocast, no dropout, AdamW with the run's weight decay and a linear schedule.
Needs the environment of `make reference`; run it in the folder that the run was started in.
"""

import argparse
import json
import os
import random
import time
import tomllib
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from peft import LoraConfig, get_peft_model

from peft_steps import padded, without_dropout

# Batches of like length are cut from so many shuffled texts, which keeps padding low and the order random.
POOL_BATCHES = 32
EVALUATION_BATCH = 64


def read_table(paths, text, label):
    rows = []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            header = file.readline().rstrip("\n").split("\t")
            places = header.index(label), header.index(text)
            for line in file:
                fields = line.rstrip("\n").split("\t")
                rows.append(tuple(fields[place] for place in places))
    return rows


def tokens_trained(run):
    """Tokens of all batches of all silos' training; a step that was done again after a stop counts once."""
    steps = {}
    with open(run / "events.jsonl", encoding="utf-8") as file:
        for event in map(json.loads, file):
            # Round 0 is the probe's.
            if event["event"] == "step" and event["round"] > 0:
                steps[event["round"], event["silo"], event["step"]] = event["tokens"]
    if not steps:
        raise SystemExit(f"error: {run}/events.jsonl tells of no training step")
    return sum(steps.values())


def same_shape(run):
    """A fresh adapter of the shape of the run's."""
    config = json.loads((run / "adapter/adapter_config.json").read_text(encoding="utf-8"))
    kept = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "modules_to_save")
    return LoraConfig(task_type="SEQ_CLS", **{key: config[key] for key in kept})


def batches(encoded, size, generator):
    """Endlessly: texts in a new order every time, sorted by length within pools."""
    while True:
        order = list(range(len(encoded)))
        generator.shuffle(order)
        for start in range(0, len(order), POOL_BATCHES * size):
            pool = sorted(order[start : start + POOL_BATCHES * size], key=lambda text: len(encoded[text]))
            cut = [pool[i : i + size] for i in range(0, len(pool), size)]
            generator.shuffle(cut)
            yield from cut


def inputs_of(texts, padding):
    return padded(texts, max(map(len, texts)), padding)


def accuracy(model, encoded, classes, padding):
    order, right = sorted(range(len(encoded)), key=lambda text: len(encoded[text])), 0
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for start in range(0, len(order), EVALUATION_BATCH):
            part = order[start : start + EVALUATION_BATCH]
            found = model(**inputs_of([encoded[text] for text in part], padding)).logits.argmax(-1).tolist()
            right += sum(found[i] == classes[text] for i, text in enumerate(part))
    return right / len(order)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run's folder")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, help="the run's own, if not given")
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(options.seed)

    config = tomllib.loads((options.run / "config.toml").read_text(encoding="utf-8"))
    data, training = config["data"], config["training"]
    rate = options.learning_rate or training["learning_rate"]
    budget = tokens_trained(options.run)
    train = read_table(data["train"], data["text"], data["label"])
    test = read_table(data["test"], data["text"], data["label"])
    labels = sorted({label for label, _ in train})

    tokenizer = transformers.AutoTokenizer.from_pretrained(config["model"]["path"])
    encode = lambda rows: tokenizer([text for _, text in rows], truncation=True, max_length=training["max_length"])
    encoded, encoded_test = encode(train)["input_ids"], encode(test)["input_ids"]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        config["model"]["path"], num_labels=len(labels), dtype=torch.float32
    )
    model = get_peft_model(model, same_shape(options.run))
    without_dropout(model)
    model.train()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=training["weight_decay"]
    )

    began, seen, steps = time.monotonic(), 0, 0
    for batch in batches(encoded, options.batch, random.Random(options.seed)):
        if seen >= budget:
            break
        texts = [encoded[text] for text in batch]
        inputs = inputs_of(texts, tokenizer.pad_token_id)
        inputs["labels"] = torch.tensor([labels.index(train[text][0]) for text in batch])
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - seen / budget)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen, steps = seen + sum(map(len, texts)), steps + 1
    seconds = time.monotonic() - began
    classes = [labels.index(label) for label, _ in test]
    print(json.dumps({
        "accuracy": accuracy(model, encoded_test, classes, tokenizer.pad_token_id),
        "test_texts": len(test),
        "trained_tokens": seen,
        "budget_tokens": budget,
        "steps": steps,
        "training_seconds": seconds,
        "learning_rate": rate,
        "seed": options.seed,
    }))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""LoRA training steps of Hugging Face PEFT on PyTorch: the peer of `crates/model/examples/bench_steps.rs`.

    .venv-interop/bin/python bench/peft_steps.py [--bf16] [--no-dropout] [--sort] [--compile] [--steps N]

The same model, texts and batches, the same LoRA, and one line of JSON with the same fields. Without options it is
what people run: f32, the model's own dropout, batches of any texts. Padding, the batch's tensors and (with --compile) a
first pass over every width are not timed; tokens are real ones. Needs the environment of `make reference`.
"""

import argparse
import json
import math
import os
import resource
import time
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from peft import LoraConfig, get_peft_model

TARGETS = ["query", "key", "value", "attention.output.dense"]
# Steps that warm up.
LEFT_OUT = 2
# As in bench_steps.rs: text j of the benchmark is line (j * STRIDE) mod lines.
STRIDE = 2_654_435_761
# Compiled code is kept for one shape of a batch; widths in few sizes are few shapes.
COMPILED_WIDTH = 32


def read_texts(path, count):
    """The labels and texts of all steps, and every label of the file in order."""
    with open(path, encoding="utf-8") as file:
        if file.readline().rstrip("\n").split("\t") != ["label", "text"]:
            raise SystemExit(f"error: {path}: expected the columns label and text")
        lines = [line.rstrip("\n").split("\t") for line in file if line.strip()]
    if count > len(lines):
        raise SystemExit(f"error: {count} texts are needed, {path} has {len(lines)}")
    chosen = [lines[text * STRIDE % len(lines)] for text in range(count)]
    return chosen, sorted({label for label, _ in lines})


def by_length(lengths, batch):
    """Batches of texts of like length, themselves in the mixed order of bench_steps.rs."""
    order = sorted(range(len(lengths)), key=lambda text: lengths[text])
    blocks = [order[start : start + batch] for start in range(0, len(order), batch)]
    count = len(blocks)
    stride = next(stride for stride in range(3 * count // 5, 2 * count) if math.gcd(stride, count) == 1)
    return [text for block in range(count) for text in blocks[block * stride % count]]


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def padded(batch, width, padding):
    ids = torch.full((len(batch), width), padding)
    mask = torch.zeros((len(batch), width), dtype=torch.long)
    for row, text in enumerate(batch):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def measure(options):
    chosen, labels = read_texts(options.data, options.batch * options.steps)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    encoded = tokenizer([text for _, text in chosen], truncation=True, max_length=options.max_length)
    examples = [(ids, labels.index(label)) for ids, (label, _) in zip(encoded["input_ids"], chosen)]
    if options.sort:
        examples = [examples[text] for text in by_length([len(ids) for ids, _ in examples], options.batch)]

    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=len(labels), dtype=torch.float32
    )
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=TARGETS))
    model.train()
    if options.no_dropout:
        without_dropout(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    forward = torch.compile(model, dynamic=True) if options.compile else model

    batches = []
    for start in range(0, len(examples), options.batch):
        part = examples[start : start + options.batch]
        texts = [ids for ids, _ in part]
        width = max(map(len, texts))
        if options.compile:
            width = -(-width // COMPILED_WIDTH) * COMPILED_WIDTH
        inputs = padded(texts, width, tokenizer.pad_token_id)
        inputs["labels"] = torch.tensor([label for _, label in part])
        batches.append((inputs, sum(map(len, texts))))

    def loss_of(inputs):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.bf16):
            return forward(**inputs).loss

    if options.compile:
        for inputs in {inputs["input_ids"].shape: inputs for inputs, _ in batches}.values():
            loss_of(inputs).backward()
        optimizer.zero_grad(set_to_none=True)

    steps, loss = [], None
    for inputs, tokens in batches:
        start = time.perf_counter()
        loss = loss_of(inputs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps.append((tokens, time.perf_counter() - start))

    timed = steps[LEFT_OUT:]
    tokens, seconds = (sum(column) for column in zip(*timed))
    lengths = [len(ids) for ids, _ in examples]
    return {
        "who": "peft",
        "base": "bf16" if options.bf16 else "f32",
        "dropout": not options.no_dropout,
        "sorted": options.sort,
        "compiled": options.compile,
        "batch": options.batch,
        "max_length": options.max_length,
        "threads": torch.get_num_threads(),
        "path": f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}",
        "steps": len(timed),
        "step_ms": 1e3 * seconds / len(timed),
        "tokens_per_s": tokens / seconds,
        "tokens": tokens,
        "mean_length": sum(lengths) / len(lengths),
        "mean_context": sum(length * length for length in lengths) / sum(lengths),
        "last_loss": loss.item(),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "peak_allocated_mib": None,
        "each_step": [[tokens, 1e3 * seconds] for tokens, seconds in steps],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="assets/models/all-MiniLM-L6-v2", help="a Hugging Face folder")
    parser.add_argument("--data", default="assets/data/20newsgroups-train.tsv", help="TSV: label, text")
    parser.add_argument("--bf16", action="store_true", help="autocast to bf16")
    parser.add_argument("--no-dropout", action="store_true", help="every dropout of the model at 0")
    parser.add_argument("--sort", action="store_true", help="batches of like length, so that little is padded")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=256, help="most tokens of a text")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if options.steps <= LEFT_OUT:
        parser.error(f"at least {LEFT_OUT + 1} steps are needed")
    # Deprecations between the pinned libraries are not ours.
    warnings.simplefilter("ignore", FutureWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(json.dumps(measure(options)))


if __name__ == "__main__":
    main()

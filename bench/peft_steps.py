#!/usr/bin/env python3
"""LoRA training steps of Hugging Face PEFT on PyTorch: the peer of `crates/model/examples/bench_steps.rs`.

    .venv-interop/bin/python bench/peft_steps.py [--bf16] [--no-dropout] [--sort] [--compile] [--steps N]
    .venv-interop/bin/python bench/peft_steps.py --model FOLDER_WITH_GGUF --data e2e.csv --lm mr,ref --batch 8

The same model, texts and batches, the same LoRA, and one line of JSON with the same fields. Without options it is
what people run: f32, the model's own dropout, batches of any texts. Padding, the batch's tensors and (with --compile) a
first pass over every width are not timed; tokens are real ones. Needs the environment of `make reference`.
"""

import argparse
import csv
import json
import math
import os
import resource
import time
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from peft import LoraConfig, get_peft_model
from tokenizers import pre_tokenizers

TARGETS = {
    "SEQ_CLS": ["query", "key", "value", "attention.output.dense"],
    "CAUSAL_LM": ["q_proj", "k_proj", "v_proj", "o_proj"],
}
# Steps that warm up.
LEFT_OUT = 2
# As in bench_steps.rs: text j of the benchmark is line (j * STRIDE) mod lines.
STRIDE = 2_654_435_761
# Compiled code is kept for one shape of a batch; widths in few sizes are few shapes.
COMPILED_WIDTH = 32


def read_texts(path, count, lm):
    """The labels and texts of all steps, and every label of the file in order; a language model's texts have none."""
    if lm:
        with open(path, encoding="utf-8", newline="") as file:
            prompt, completion = lm.split(",")
            lines = [(None, f"{row[prompt]}\n{row[completion]}") for row in csv.DictReader(file)]
    else:
        with open(path, encoding="utf-8") as file:
            if file.readline().rstrip("\n").split("\t") != ["label", "text"]:
                raise SystemExit(f"error: {path}: expected the columns label and text")
            lines = [line.rstrip("\n").split("\t") for line in file if line.strip()]
    if count > len(lines):
        raise SystemExit(f"error: {count} texts are needed, {path} has {len(lines)}")
    chosen = [lines[text * STRIDE % len(lines)] for text in range(count)]
    return chosen, [] if lm else sorted({label for label, _ in lines})


def load(options, labels):
    """The tokenizer and the model, in f32; of a folder with SmolLM2's GGUF file, its weights expanded."""
    where = {"pretrained_model_name_or_path": options.model}
    gguf = sorted(Path(options.model).glob("*.gguf"))
    if gguf:
        where["gguf_file"] = gguf[0].name
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    if gguf:
        # Transformers leaves out of a GGUF file that SmolLM2 splits numbers into digits.
        split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    if options.lm:
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return tokenizer, transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    model = transformers.AutoModelForSequenceClassification
    return tokenizer, model.from_pretrained(**where, num_labels=len(labels), dtype=torch.float32)


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
    chosen, labels = read_texts(options.data, options.batch * options.steps, options.lm)
    tokenizer, model = load(options, labels)
    encoded = tokenizer([text for _, text in chosen], truncation=True, max_length=options.max_length)
    classes = {label: place for place, label in enumerate(labels)}
    examples = [(ids, classes.get(label)) for ids, (label, _) in zip(encoded["input_ids"], chosen)]
    if options.sort:
        examples = [examples[text] for text in by_length([len(ids) for ids, _ in examples], options.batch)]

    task = "CAUSAL_LM" if options.lm else "SEQ_CLS"
    model = get_peft_model(model, LoraConfig(task_type=task, r=8, lora_alpha=16, target_modules=TARGETS[task]))
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
        if options.lm:
            # Padding does not count.
            inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        else:
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
    parser.add_argument("--lm", metavar="PROMPT,COMPLETION", help="language model of texts in two columns of a CSV file")
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

#!/usr/bin/env python3
"""Holds what a run's GGUF adapter makes llama.cpp write against what FedPipe writes with the run itself.

    pip install llama-cpp-python        # builds llama.cpp; a C++ compiler, ten minutes
    fedpipe export runs/e2e --to adapter --format gguf
    scripts/interop_llama_cpp.py runs/e2e --base MODEL.gguf --adapter adapter/adapter.gguf --data FILE.csv

Greedy completions of the first prompts of a file (its column `mr`, as in E2E NLG) with the plain template. llama.cpp rounds
activations to 8 bits beside a quantised base, so where two tokens are about as likely the texts part: the figure to look
at is how many agree with the adapter, beside how many agree without one. Exit code: 0, or 1 when fewer than half of the texts
with the adapter are the same.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import llama_cpp

TOKENS = 32


def prompts_of(path, limit):
    with open(path, encoding="utf-8", newline="") as file:
        return list(dict.fromkeys(row["mr"] for row in csv.DictReader(file)))[:limit]


def fedpipe_texts(options, prompts, *extra):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        # The run names its own columns.
        file.writelines(json.dumps({"mr": prompt, "ref": "", "prompt": prompt}) + "\n" for prompt in prompts)
        file.flush()
        command = [options.fedpipe, "generate", options.run, "--data", file.name, "--base", "f32", "--json"]
        done = subprocess.run(
            [*map(str, command), "--max-new-tokens", str(TOKENS), *extra], stdout=subprocess.PIPE, text=True, check=True
        )
    return [json.loads(line)["completion"] for line in done.stdout.splitlines()]


def llama_cpp_texts(options, prompts, adapter):
    model = llama_cpp.Llama(str(options.base), lora_path=adapter and str(adapter), n_ctx=1024, verbose=False)
    texts = []
    for prompt in prompts:
        tokens = model.tokenize((prompt + "\n").encode(), add_bos=False, special=True)
        texts.append(model.create_completion(tokens, max_tokens=TOKENS, temperature=0.0)["choices"][0]["text"])
    return texts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--base", type=Path, required=True, help="the base model, a GGUF file")
    parser.add_argument("--adapter", type=Path, required=True, help="the exported adapter, a GGUF file")
    parser.add_argument("--data", type=Path, required=True, help="CSV with the column mr")
    parser.add_argument("--limit", type=int, default=40, help="how many prompts (40)")
    parser.add_argument("--fedpipe", type=Path, default=Path("target/release/fedpipe"))
    options = parser.parse_args()
    prompts = prompts_of(options.data, options.limit)
    agree = {}
    for name, adapter, extra in (("with", options.adapter, []), ("without", None, ["--no-adapter"])):
        ours, theirs = fedpipe_texts(options, prompts, *extra), llama_cpp_texts(options, prompts, adapter)
        agree[name] = sum(a.strip() == b.strip() for a, b in zip(ours, theirs, strict=True))
        print(f"{name} the adapter: the same text for {agree[name]} of {len(prompts)} prompts")
        print(f"  fedpipe   {ours[0]!r}\n  llama.cpp {theirs[0]!r}")
    return 0 if 2 * agree["with"] >= len(prompts) else 1


if __name__ == "__main__":
    sys.exit(main())

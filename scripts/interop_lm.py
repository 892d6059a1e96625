#!/usr/bin/env python3
"""Checks a language model that `fedpipe run` fine-tuned from a GGUF file against Transformers and PEFT.

    scripts/interop_lm.py RUN --data FILE.csv [--column mr] [--prompts 20] [--tokens 32]

    base      `fedpipe export MODEL --format merged` in Transformers     against Transformers' own reader of the file
    logits    that folder + RUN/adapter in PEFT                          against FedPipe's, over base f32 and bf16
    texts     greedy generation of both, in f32                          token for token

`make interop-lm RUN=runs/NAME DATA=FILE` builds what it needs and calls this with the reference environment. Exit code:
0 when everything agrees, 1 when something does not.
"""

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy
import peft
import torch
import transformers

# Largest difference of a logit.
F32_TOLERANCE = 1e-3
# Root mean square of the differences, of the logits' own.
BF16_TOLERANCE = 1e-2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="a CSV file with prompts")
    parser.add_argument("--column", default="mr", help="of the prompts")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--fedpipe", type=Path, default="target/release/fedpipe")
    parser.add_argument("--logits", type=Path, default="target/release/examples/lm_logits")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    with open(options.run / "config.toml", "rb") as file:
        model = Path(tomllib.load(file)["model"]["path"])
    failed = []

    def expect(good, what):
        print(f"{'ok  ' if good else 'FAIL'}  {what}", flush=True)
        failed.extend([] if good else [what])

    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        folder = Path(temporary)
        base = folder / "base"
        subprocess.run([options.fedpipe, "export", model, "--to", base, "--format", "merged"], check=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(base)
        ours = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        file = sorted(model.glob("*.gguf"))[0] if model.is_dir() else model
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
        worst = max(
            (a - b).abs().max().item()
            for (_, a), (_, b) in zip(sorted(ours.named_parameters()), sorted(theirs.named_parameters()))
        )
        expect(worst <= 1e-6, f"base: largest difference of a weight {worst:.1e} (at most 1e-6)")
        del theirs

        with open(options.data, encoding="utf-8", newline="") as lines:
            prompts = list(dict.fromkeys(row[options.column] for row in csv.DictReader(lines)))
        step = max(1, len(prompts) // options.prompts)
        prompts = prompts[::step][: options.prompts]
        texts = [tokenizer(prompt + "\n")["input_ids"] for prompt in prompts]
        (folder / "texts.jsonl").write_text("".join(json.dumps(ids) + "\n" for ids in texts))

        def load_peft():
            whole = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            return peft.PeftModel.from_pretrained(whole, options.run / "adapter").eval()

        model = load_peft()

        def logits_of_peft(dtype):
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                return torch.cat([model(input_ids=torch.tensor([ids])).logits[0].float() for ids in texts])

        def logits_of_fedpipe(name, **environment):
            out = folder / f"{name}.f32"
            command = [options.logits, file, options.run / "adapter", name, folder / "texts.jsonl", out]
            subprocess.run(command, check=True, env={**os.environ, **environment})
            return torch.from_numpy(numpy.fromfile(out, dtype="<f4").reshape(-1, ours.config.vocab_size))

        exact, found = logits_of_peft(torch.float32), logits_of_fedpipe("f32")
        worst = (found - exact).abs().max().item()
        tokens, size = exact.shape[0], exact.abs().max()
        what = f"largest difference {worst:.1e} over {tokens} tokens, logits to {size:.0f} (at most {F32_TOLERANCE})"
        expect(worst <= F32_TOLERANCE, f"logits, f32: {what}")

        def distance(logits, others):
            return ((logits - others).square().mean().sqrt() / exact.square().mean().sqrt()).item()

        # Products of bf16 round in places of their own, PEFT's two ways in different ones; what counts is how far each is from
        # f32.
        fedpipe, autocast = logits_of_fedpipe("bf16"), logits_of_peft(torch.bfloat16)
        off = [distance(logits, exact) for logits in (fedpipe, autocast)]
        model.to(torch.bfloat16)
        whole = logits_of_peft(torch.float32)
        what = "{:.1e} from PEFT's in f32 (root mean squares, at most {}); PEFT's own {:.1e} by autocast, {:.1e} as a whole"
        expect(off[0] <= BF16_TOLERANCE, f"logits, bf16: {what.format(off[0], BF16_TOLERANCE, off[1], distance(whole, exact))}")
        apart = [distance(fedpipe, autocast), distance(fedpipe, whole), distance(autocast, whole)]
        print("      {:.1e} from PEFT's by autocast, {:.1e} from its bf16 as a whole; these two {:.1e} apart".format(*apart))
        del model, whole
        model = load_peft()

        # Without AVX-512 products over bf16 weights are of f32: what is left is the weights, rounded alike.
        if platform.machine() in ("x86_64", "AMD64"):
            for name, weight in model.named_parameters():
                if weight.ndim == 2 and "lora_" not in name:
                    weight.copy_(weight.bfloat16().float())
            worst = (logits_of_fedpipe("bf16", FEDPIPE_KERNELS="avx2") - logits_of_peft(torch.float32)).abs().max().item()
            what = f"largest difference {worst:.1e} (at most {F32_TOLERANCE})"
            expect(worst <= F32_TOLERANCE, f"logits, f32 arithmetic over weights in bf16: {what}")
            model = load_peft()

        data = folder / "prompts.jsonl"
        data.write_text("".join(json.dumps({options.column: prompt}) + "\n" for prompt in prompts))
        command = [options.fedpipe, "generate", options.run, "--data", data, "--base", "f32", "--json"]
        command += ["--max-new-tokens", str(options.tokens)]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        written = [json.loads(line)["completion"] for line in lines]
        same = 0
        for prompt, ids, ours_wrote in zip(prompts, texts, written):
            new = model.generate(
                input_ids=torch.tensor([ids]), max_new_tokens=options.tokens, do_sample=False, pad_token_id=0
            )[0, len(ids) :]
            expected = tokenizer.decode(new, skip_special_tokens=True)
            same += expected == ours_wrote
            if expected != ours_wrote:
                print(f"      {prompt}\n      PEFT     {expected!r}\n      FedPipe  {ours_wrote!r}")
        expect(same == len(prompts), f"texts: {same} of {len(prompts)} are the same, {options.tokens} tokens at most")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Measures FedPipe beside its peers on this machine, prints a table and writes bench/results/DATE-PROCESSOR.json.

    bench/run.py [--quick] [--steps-only [NAME]] [--rounds N] [--steps N] [--e2e FILE.csv] [--out FOLDER]

Products of matrices beside the processor's limit and the `gemm` crate; whole training steps beside Hugging Face PEFT.
Settings of training run in turn, a fresh process each, and each one's best round counts: noise only ever slows. `make
bench` calls this; bench/README.md tells how to read the table. Python 3.9 or newer, no packages; the peer runs in the
environment of `make reference`.
"""

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Raised when a field of the results changes its meaning.
FORMAT = 2
# Longer than any step takes to compile or run on two cores: a hung program is reported, not waited for.
PROGRAM_TIMEOUT_S = 1800
PEFT_AS_RUN = "PEFT f32, as people run it"

# SmolLM2-135M as a GGUF file, which has no config.json.
SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "key_value_size": 192,
    "vocab_size": 49152,
    "causal": True,
}
# name -> (who, options). Ours draws random batches unless sorted; PEFT's first setting is what its users get.
SETTINGS = {
    "FedPipe bf16": ("fedpipe", ["--base", "bf16"]),
    "FedPipe bf16, sorted": ("fedpipe", ["--base", "bf16", "--sort"]),
    "FedPipe nf4": ("fedpipe", ["--base", "nf4"]),
    "FedPipe f32": ("fedpipe", ["--base", "f32"]),
    PEFT_AS_RUN: ("peft", []),
    "PEFT bf16": ("peft", ["--bf16"]),
    "PEFT bf16, no dropout, sorted": ("peft", ["--bf16", "--no-dropout", "--sort"]),
    "PEFT bf16, no dropout, sorted, compiled": ("peft", ["--bf16", "--no-dropout", "--sort", "--compile"]),
}
QUICK_SETTINGS = ["FedPipe bf16", PEFT_AS_RUN, "PEFT bf16, no dropout, sorted"]


class Failure(Exception):
    """Something that the user can act on; printed without a traceback."""


def flop_per_token(config, rank, mean_context):
    """Arithmetic of one LoRA training step, forward and backward, per token; a multiply-add counts two.

    `config` has the fields of a BERT's config.json, or those of SMOLLM2 for a Llama that learns every next token; LoRA of
    `rank` sits on query, key, value and the attention's output; `mean_context` is how long the text of a token is, on
    average over tokens. Counted is what such a step has to execute: work that a program does beyond it (padding, a
    second forward pass) is not. Left out, below 1 % together: embeddings, norms, activations, pooler, a classifier's
    head, optimizer.
    """
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    causal, narrow = config.get("causal", False), config.get("key_value_size", hidden)
    # Query and output, key and value; a Llama's feed-forward part has a gate.
    attended = 2 * hidden * hidden + 2 * hidden * narrow
    frozen = layers * (attended + (3 if causal else 2) * hidden * inner)
    # dy·W for each, but nothing trains below the first query, key and value.
    frozen_backward = frozen - hidden * hidden - 2 * hidden * narrow
    # Logits, and their gradient.
    vocabulary = 2 * config["vocab_size"] * hidden if causal else 0
    # Forward q·kᵀ and p·v; backward q·kᵀ again, and the gradients of p, v, q and k. Half of a text lies before a token.
    attention = layers * (2 + 5) * hidden * mean_context / (2 if causal else 1)
    # x·Aᵀ·Bᵀ forward, its gradient by x, and those of A and B.
    lora = layers * 3 * rank * (2 * 2 * hidden + 2 * (hidden + narrow))
    return 2 * (frozen + frozen_backward + vocabulary + attention + lora)


def best_round(rounds):
    """The fastest of the rounds of one setting, or None if all failed."""
    return max((r for r in rounds if "error" not in r), key=lambda r: r["tokens_per_s"], default=None)


def check_same_work(results):
    """Refuses to compare settings that saw other tokens: step by step as many in all unsorted ones, likewise sorted."""
    seen = {}
    for name, rounds in results.items():
        for figures in rounds:
            if "error" in figures:
                continue
            tokens = [tokens for tokens, _ in figures["each_step"]]
            first, expected = seen.setdefault(figures["sorted"], (name, tokens))
            if tokens != expected:
                raise Failure(f"{name} and {first} saw different batches: {tokens} and {expected} tokens")


def compare(results, config, rank=8):
    """One row a setting, in order: its best round, and how it stands to PEFT and to the machine's limit."""
    best = {name: best_round(rounds) for name, rounds in results.items()}
    peers = [figures for figures in best.values() if figures and figures["who"] == "peft"]
    fastest = max(peers, key=lambda figures: figures["tokens_per_s"], default=None)
    as_run = best.get(PEFT_AS_RUN)
    rows = []
    for name, figures in best.items():
        if figures is None:
            rows.append({"setting": name, "error": results[name][0]["error"]})
            continue
        flop = flop_per_token(config, rank, figures["mean_context"])
        row = {
            "setting": name,
            "tokens_per_s": figures["tokens_per_s"],
            "step_ms": figures["step_ms"],
            "peak_rss_mib": figures["peak_rss_mib"],
            "mflop_per_token": flop / 1e6,
            "share_of_limit": flop * figures["tokens_per_s"] / (figures["limit_gflops"] * 1e9),
        }
        for key, peer in (("as_run", as_run), ("fastest", fastest)):
            row[f"speed_over_{key}"] = figures["tokens_per_s"] / peer["tokens_per_s"] if peer else None
            row[f"memory_over_{key}"] = figures["peak_rss_mib"] / peer["peak_rss_mib"] if peer else None
        rows.append(row)
    return rows


def table(rows):
    """The rows as Markdown."""

    def shown(value, form):
        return "" if value is None else format(value, form)

    lines = [
        "| setting | tokens/s | ms a step | × PEFT as run | × PEFT's fastest | peak MiB | of PEFT's as run "
        "| of its fastest's | share of the limit |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['setting']} | failed: {row['error'].splitlines()[-1]} |" + " |" * 7)
            continue
        cells = [
            shown(row["tokens_per_s"], ",.0f"),
            shown(row["step_ms"], ",.0f"),
            shown(row["speed_over_as_run"], ".2f"),
            shown(row["speed_over_fastest"], ".2f"),
            shown(row["peak_rss_mib"], ",.0f"),
            shown(row["memory_over_as_run"], ".2f"),
            shown(row["memory_over_fastest"], ".2f"),
            shown(row["share_of_limit"], ".2f"),
        ]
        lines.append(f"| {row['setting']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def results_name(now, processor):
    """20261122-1850-amd-epyc.json"""
    slug = re.sub(r"[^a-z0-9]+", "-", processor.lower()).strip("-")
    return f"{now:%Y%m%d-%H%M}-{slug}.json"


def run(command, quiet=True):
    """The program's standard output; what it writes to standard error is shown only if it fails, unless not quiet."""
    command = [str(part) for part in command]
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE if quiet else None, text=True,
            timeout=PROGRAM_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"`{' '.join(command)}` did not end within {PROGRAM_TIMEOUT_S} s") from None
    if done.returncode != 0:
        raise Failure(f"`{' '.join(command)}` ended with {done.returncode}\n{(done.stderr or '').strip()}")
    return done.stdout


def build(package, example, folder, features=()):
    """Builds an example in release and copies it to `folder`: a build with other features takes its place."""
    command = ["cargo", "build", "--release", "-p", package, "--example", example]
    command += [f"--features={','.join(features)}"] if features else []
    for line in run([*command, "--message-format=json-render-diagnostics"], quiet=False).splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == example:
            return Path(shutil.copy(message["executable"], folder / "-".join([example, *features])))
    raise Failure(f"cargo built no {example}")


def measure_products(program, folder, options):
    """The product benchmark's table on the terminal, its figures as a value."""
    file = folder / "products.json"
    for line in run([program, "--json", file, *options]).splitlines():
        print(line, flush=True)
    return json.loads(file.read_text(encoding="utf-8"))


def measure_limit(program, folder):
    """GFLOP/s of the fastest multiply-adds that the processor has, right now."""
    file = folder / "limit.json"
    run([program, "--limit", "--json", file])
    return max(json.loads(file.read_text(encoding="utf-8"))["limit_gflops"].values())


def measure_steps(settings, programs, folder, rounds, steps):
    """Every setting once a round, the limit before and after; name -> figures of every round."""
    results = {name: [] for name in settings}
    for number in range(1, rounds + 1):
        before = measure_limit(programs["limit"], folder)
        for name in settings:
            who, options = SETTINGS[name]
            print(f"round {number} of {rounds}: {name} ... ", end="", flush=True)
            try:
                figures = json.loads(run([*programs[who], *options, "--steps", steps]).splitlines()[-1])
            except Failure as failure:
                # A setting that PyTorch cannot run here is a gap in the table; one of ours is a bug.
                if who == "fedpipe":
                    raise
                figures = {"error": str(failure)}
                print("failed", flush=True)
            after = measure_limit(programs["limit"], folder)
            figures["limit_gflops"] = max(before, after)
            before = after
            results[name].append(figures)
            if "error" not in figures:
                print(f"{figures['tokens_per_s']:,.0f} tokens/s, {figures['peak_rss_mib']:,.0f} MiB", flush=True)
    return results


def processor():
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def has_avx512():
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and " avx512f " in cpuinfo.read_text(encoding="utf-8")


def commit():
    try:
        return run(["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]).strip()
    except (Failure, OSError):
        return None


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few settings, few repetitions: a look, not a result")
    parser.add_argument(
        "--steps-only", nargs="?", const="", metavar="NAME",
        help="training steps alone, no products; only those of the workloads with NAME in their names"
    )
    parser.add_argument("--rounds", type=int, help="how often every setting of training runs (2; quick: 1)")
    parser.add_argument("--steps", type=int, help="steps of a run, the first two not counted (22; quick: 6)")
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-interop/bin/python", help="of `make reference`")
    parser.add_argument("--model", type=Path, default=ROOT / "assets/models/all-MiniLM-L6-v2")
    parser.add_argument("--data", type=Path, default=ROOT / "assets/data/20newsgroups-train.tsv")
    parser.add_argument(
        "--e2e", type=Path, default=ROOT / "assets/data/e2e/devset.csv", help="E2E NLG's texts; skipped where absent"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results", help="folder of the results")
    options = parser.parse_args()
    for path, target in ((options.python, "reference"), (options.model, "assets"), (options.data, "assets")):
        if not path.exists():
            raise Failure(f"{path} is missing; `make {target}` makes it")
    return options


def workloads(options):
    """What is trained: a name, the options of both programs, and what a token costs."""
    config = json.loads((options.model / "config.json").read_text(encoding="utf-8"))
    found = [("all-MiniLM-L6-v2, 20 Newsgroups", ["--model", options.model, "--data", options.data], config)]
    smollm2 = ROOT / "assets/models/SmolLM2-135M-Instruct-GGUF"
    if options.e2e.exists() and smollm2.exists():
        where = ["--model", smollm2, "--data", options.e2e, "--lm", "mr,ref", "--batch", "8"]
        found.append(("SmolLM2-135M, E2E NLG", where, SMOLLM2))
    else:
        print(f"SKIPPED: SmolLM2 on E2E NLG takes {options.e2e} (--e2e FILE) and {smollm2}", file=sys.stderr)
    return found


def bench(options):
    began, now = time.monotonic(), datetime.datetime.now()
    # Before anything is built: the tree may change while the programs run.
    measured_commit = commit()
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"warning: the machine is busy (load {load:.1f}); figures are rough", file=sys.stderr)
    rounds, steps = options.rounds or (1 if options.quick else 2), options.steps or (6 if options.quick else 22)
    settings = QUICK_SETTINGS if options.quick else list(SETTINGS)
    product_options = ["--quick", "--models", "minilm", "--tokens", "512"] if options.quick else []

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # The program with the `gemm` crate at AVX-512, for products.
        peer = has_avx512() and options.steps_only is None
        avx512 = build("fedpipe-kernels", "bench_products", folder, ["bench-gemm-avx512"]) if peer else None
        products = build("fedpipe-kernels", "bench_products", folder)
        steps_program = build("fedpipe-model", "bench_steps", folder)
        measured_products = []
        if options.steps_only is None:
            print("\nProducts of matrices; `gemm` at AVX2 or what else it has without AVX-512", flush=True)
            measured_products.append(measure_products(products, folder, product_options))
        if avx512:
            print("\nProducts in f32, `gemm` at AVX-512", flush=True)
            measured_products.append(measure_products(avx512, folder, ["--peer", *product_options]))
        print("\nTraining steps", flush=True)
        training = []
        wanted = options.steps_only or ""
        for workload, where, config in (it for it in workloads(options) if wanted in it[0]):
            print(f"\n{workload}", flush=True)
            programs = {
                "limit": products,
                "fedpipe": [steps_program, *where],
                "peft": [options.python, ROOT / "bench/peft_steps.py", *where],
            }
            results = measure_steps(settings, programs, folder, rounds, steps)
            check_same_work(results)
            rows = compare(results, config)
            print(f"\n{table(rows)}\n", flush=True)
            training.append({"workload": workload, "comparison": rows, "rounds": results})
    everything = {
        "format": FORMAT,
        "date": now.isoformat(timespec="seconds"),
        "commit": measured_commit,
        "processor": processor(),
        "system": platform.platform(),
        "load_before": load,
        "quick": options.quick,
        "rounds": rounds,
        "seconds": round(time.monotonic() - began),
        "training": training,
        "products": measured_products,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / results_name(now, processor())
    file.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    print(f"written to {file}")


def main():
    try:
        bench(parse_arguments())
    except (Failure, OSError) as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

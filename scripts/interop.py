#!/usr/bin/env python3
"""Checks that Transformers and PEFT, loading what a FedPipe run exported, compute what FedPipe computes.

    scripts/interop.py RUN --model FOLDER --data FILE.tsv [--fedpipe BINARY] [--limit N] [--tolerance X]

    adapter          base model + RUN/adapter in PEFT      against `fedpipe predict RUN`
    merged           `fedpipe export --merged` in Transformers, without PEFT       likewise
    adapter-serving  the weight change of every module     against the one of RUN/adapter

`make interop` makes a short run and calls this with the reference environment (scripts/python_env.sh).
Exit code: 0 when everything agrees, 1 when something does not, 2 when the check could not be done.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import transformers
from safetensors.torch import load_file

LOGIT_TOLERANCE = 1e-3
DELTA_TOLERANCE = 1e-5
SERVING_RANKS = (8, 16, 32, 64)
BATCH = 16


class NotPossible(Exception):
    """The check could not be done: an input is missing or `fedpipe` failed."""


class Checks:
    """Prints every figure as it is found and remembers whether all were good."""

    def __init__(self):
        self.failed = 0

    def expect(self, good, what):
        self.failed += not good
        print(f"{'ok  ' if good else 'FAIL'}  {what}", flush=True)


def read_texts(path, limit):
    with open(path, encoding="utf-8") as file:
        header = file.readline().rstrip("\n").split("\t")
        if header != ["label", "text"]:
            raise NotPossible(f"{path}: expected the columns label and text, found {header}")
        texts = [line.rstrip("\n").split("\t")[1] for _, line in zip(range(limit), file)]
    if not texts:
        raise NotPossible(f"{path}: holds no texts")
    return texts


def read_labels(adapter):
    """The class names in the order of the logits."""
    labels = json.loads((adapter / "fedpipe.json").read_text(encoding="utf-8")).get("labels")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise NotPossible(f"{adapter}/fedpipe.json: expected `labels`, a list of class names")
    return labels


def run_fedpipe(binary, *arguments):
    # Made absolute: a bare name would be looked up in PATH.
    command = [str(binary.resolve()), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise NotPossible(f"`{' '.join(command)}` ended with {done.returncode}:\n{done.stderr.strip()}")
    return done.stdout


def fedpipe_predictions(binary, run, data, limit):
    output = run_fedpipe(binary, "predict", run, "--data", data, "--limit", limit, "--json", "--logits")
    return [json.loads(line) for line in output.splitlines() if line.strip()]


@torch.no_grad()
def logits_of(model, tokenizer, texts, max_length):
    model.eval()
    rows = []
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        inputs = tokenizer(batch, truncation=True, max_length=max_length, padding="longest", return_tensors="pt")
        rows.append(model(**inputs).logits)
    return torch.cat(rows)


def base_model(folder, labels):
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        folder,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        dtype=torch.float32,
        # A head of the base's own may have other labels; the adapter brings the one that counts.
        ignore_mismatched_sizes=True,
    )


def compare_logits(checks, name, reference, predictions, labels, tolerance):
    """FedPipe's predictions against PyTorch's logits of the same texts."""
    if len(predictions) != len(reference):
        checks.expect(False, f"{name}: {len(predictions)} predictions for {len(reference)} texts")
        return
    widths = {len(prediction["logits"]) for prediction in predictions}
    if widths != {len(labels)}:
        checks.expect(False, f"{name}: expected {len(labels)} logits a text, found {sorted(widths)}")
        return
    logits = torch.tensor([prediction["logits"] for prediction in predictions])
    # Written so that a NaN on either side fails.
    difference = (logits - reference).abs().max().item()
    checks.expect(
        difference <= tolerance,
        f"{name}: largest difference of a logit {difference:.2e} (at most {tolerance:.0e}; "
        f"the logits reach {reference.abs().max().item():.2f})",
    )
    best = reference.softmax(dim=1).max(dim=1)
    same = sum(labels[index] == prediction["label"] for index, prediction in zip(best.indices, predictions))
    checks.expect(same == len(predictions), f"{name}: the same label for {same} of {len(predictions)} texts")
    probability = torch.tensor([prediction["probability"] for prediction in predictions])
    difference = (probability - best.values).abs().max().item()
    checks.expect(difference <= tolerance, f"{name}: largest difference of a probability {difference:.2e}")
    used = {prediction["label"] for prediction in predictions}
    print(f"      {name}: {len(used)} of {len(labels)} labels occur in the predictions")


def load_peft(checks, name, base, folder, keys):
    """The model with the adapter of `folder`; checks that PEFT took every tensor of the file and misses none."""
    model = peft.PeftModel.from_pretrained(base, folder).eval()
    saved = load_file(folder / "adapter_model.safetensors")
    wanted = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    saved_keys, wanted_keys = {key for key in saved if keys(key)}, {key for key in wanted if keys(key)}
    odd = sorted(saved_keys ^ wanted_keys)
    checks.expect(
        not odd,
        f"{name}: PEFT wants the {len(wanted_keys)} tensors that the file holds"
        + (f"; not in both: {odd}" if odd else ""),
    )
    both = sorted(saved_keys & wanted_keys)
    changed = [key for key in both if not torch.equal(saved[key].float(), wanted[key].float())]
    checks.expect(not changed, f"{name}: their values arrived" + (f"; not those of {changed}" if changed else ""))
    return model


def weight_changes(model):
    """scale * B A of every adapted module, as PEFT computes it."""
    return {
        name: module.get_delta_weight("default").detach().float()
        for name, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }


def check_serving(checks, folder, base, faithful):
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    plain = not any(config.get(key) for key in ("rank_pattern", "alpha_pattern", "modules_to_save"))
    checks.expect(
        plain and config["r"] in SERVING_RANKS and config["lora_alpha"] == config["r"],
        f"adapter-serving: one rank {config['r']}, alpha {config['lora_alpha']}, no patterns, no head",
    )
    saved = load_file(folder / "adapter_model.safetensors")
    ranks = {tensor.shape[0] for key, tensor in saved.items() if ".lora_A." in key}
    ranks |= {tensor.shape[1] for key, tensor in saved.items() if ".lora_B." in key}
    other = [key for key in saved if ".lora_A." not in key and ".lora_B." not in key]
    checks.expect(
        not other and ranks == {config["r"]},
        f"adapter-serving: ranks of its tensors {sorted(ranks)}, others {other}",
    )
    model = load_peft(checks, "adapter-serving", base, folder, keys=lambda key: ".lora_" in key)
    serving = weight_changes(model)
    worst = 0.0
    for name in faithful.keys() | serving.keys():
        # A module that one of the two does not adapt is one that it does not change.
        if name not in serving:
            difference = faithful[name].abs().max().item()
        else:
            difference = (serving[name] - faithful.get(name, torch.zeros(()))).abs().max().item()
        worst = max(worst, difference) if difference == difference else float("inf")
    largest = max((change.abs().max().item() for change in faithful.values()), default=0.0)
    checks.expect(
        worst <= DELTA_TOLERANCE and largest > 0,
        f"adapter-serving: largest difference of a weight change {worst:.2e} over {len(faithful)} modules "
        f"(at most {DELTA_TOLERANCE:.0e}; the changes reach {largest:.2e})",
    )


def check(options):
    checks, tolerance = Checks(), options.tolerance
    adapter = options.run / "adapter"
    labels = read_labels(adapter)
    config = tomllib.loads((options.run / "config.toml").read_text(encoding="utf-8"))
    max_length = config["training"]["max_length"]
    texts = read_texts(options.data, options.limit)
    print(f"{len(texts)} texts of {options.data.name}, {len(labels)} labels, at most {max_length} tokens; "
          f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}", flush=True)

    predictions = fedpipe_predictions(options.fedpipe, options.run, options.data, options.limit)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    model = load_peft(checks, "adapter", base_model(options.model, labels), adapter, keys=lambda key: True)
    compare_logits(checks, "adapter", logits_of(model, tokenizer, texts, max_length), predictions, labels, tolerance)
    faithful = weight_changes(model)

    with tempfile.TemporaryDirectory() as folder:
        merged = Path(folder) / "merged"
        run_fedpipe(options.fedpipe, "export", options.run, "--to", merged, "--merged")
        model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
            merged, dtype=torch.float32, output_loading_info=True
        )
        odd = sorted([*info["missing_keys"], *info["unexpected_keys"], *map(str, info["mismatched_keys"])])
        checks.expect(
            not odd,
            "merged: Transformers finds the tensors it wants and no others" + (f": {odd}" if odd else ""),
        )
        names = [model.config.id2label.get(index) for index in range(model.config.num_labels)]
        checks.expect(names == labels, f"merged: config.json names the labels {names}")
        # The merged folder has to work on its own, so its own tokenizer is used.
        tokenizer = transformers.AutoTokenizer.from_pretrained(merged)
        compare_logits(checks, "merged", logits_of(model, tokenizer, texts, max_length), predictions, labels, tolerance)

    check_serving(checks, options.run / "adapter-serving", base_model(options.model, labels), faithful)
    return checks.failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--model", type=Path, required=True, help="the base model of the run, a Hugging Face folder")
    parser.add_argument("--data", type=Path, required=True, help="TSV with the columns label and text")
    parser.add_argument("--fedpipe", type=Path, default=Path("target/release/fedpipe"), help="the binary to check")
    parser.add_argument("--limit", type=int, default=64, help="how many texts of the file to compare (64)")
    parser.add_argument("--tolerance", type=float, default=LOGIT_TOLERANCE, help="of a logit (1e-3)")
    options = parser.parse_args()
    # Deprecations between the pinned libraries are not ours.
    warnings.simplefilter("ignore", FutureWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    try:
        failed = check(options)
    except (NotPossible, OSError, KeyError, ValueError) as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(f"interop: {'all agree' if not failed else f'{failed} checks failed'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Checks that Transformers and PEFT, loading what a FedPipe run exported, compute what FedPipe computes.

    scripts/interop.py RUN --model FOLDER --data FILE.tsv [--fedpipe BINARY] [--limit N] [--tolerance X]

    adapter   base model + RUN/adapter in PEFT                                       against `fedpipe predict RUN`
    merged    `fedpipe export --format merged` in Transformers, without PEFT         likewise

and of a language model, for which a tiny Llama is trained first:

    serving   base model + `fedpipe export --format serving` in PEFT                 against `--format peft`
    merged    `fedpipe export --format merged` in Transformers                       likewise
    gguf      alpha / rank B A of `--format gguf`, read with llama.cpp's own package, beside the base's weights in
              llama.cpp's order                                                      against `--format merged`

and of a model that answers questions, for which a tiny RoBERTa is trained first:

    answers   base model + RUN/adapter in PEFT                                       against `fedpipe predict RUN`
    merged    `fedpipe export --format merged` in Transformers                       likewise

`make interop` makes a short run and calls this with the reference environment (scripts/python_env.sh).
Exit code: 0 when everything agrees, 1 when something does not, 2 when the check could not be done.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import gguf
import peft
import tokenizers
import torch
import transformers
from safetensors.torch import load_file

LOGIT_TOLERANCE = 1e-3
# The same products in another order.
EXPORT_TOLERANCE = 1e-5
SERVING_RANKS = (8, 16, 32, 64)
BATCH = 16
LLAMA = Path(__file__).parent.parent / "crates/testkit/fixtures/decoders/llama"
ROBERTA = LLAMA.parent.parent / "encoders/roberta"
QUESTIONS_RUN = """
model.path = "model"
task = { kind = "span-qa", stride = 2 }
data = { train = ["questions.jsonl"], test = ["questions.jsonl"] }
output.dir = "run"
federation = { rounds = 1, seed = 7, partition = { kind = "iid" } }
adapter = { ranks = [2, 4] }
training = { local_steps = 100, learning_rate = 1e-2, max_length = 22 }
[[silos]]
name = "only"
memory_mib = 64
"""
MAX_ANSWER_TOKENS = 30
LLAMA_RUN = """
model.path = "model"
task = { kind = "instruct", template = "plain" }
data = { train = ["texts.jsonl"], test = ["texts.jsonl"] }
output.dir = "run"
federation = { rounds = 2, seed = 7, partition = { kind = "iid" } }
adapter = { ranks = [2, 4], target_modules = ["q_proj", "k_proj", "v_proj", "down_proj"] }
training = { local_steps = 10, learning_rate = 1e-2, max_length = 16 }
[[silos]]
name = "only"
memory_mib = 64
"""


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


def run_fedpipe(binary, *arguments, cwd=None):
    # Made absolute: a bare name would be looked up in PATH.
    command = [str(binary.resolve()), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd)
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


def train_llama(binary, folder):
    """A run over a tiny Llama in `folder` and its exports, by format."""
    model = folder / "model"
    model.mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(LLAMA / file, model)
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, 64))])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(model / "tokenizer.json"))
    with open(folder / "texts.jsonl", "w", encoding="utf-8") as file:
        for i in range(80):
            record = {"prompt": f"w{4 + i % 30} w{8 + i % 20}", "completion": f"w{40 + i % 3} w44"}
            file.write(json.dumps(record) + "\n")
    (folder / "run.toml").write_text(LLAMA_RUN, encoding="utf-8")
    run_fedpipe(binary, "run", "run.toml", "--quiet", cwd=folder)
    for form in ("peft", "serving", "merged", "gguf"):
        run_fedpipe(binary, "export", "run", "--to", form, "--format", form, cwd=folder)


@torch.no_grad()
def check_language_model(checks, folder):
    """The exports of a run over a Llama against each other."""
    load = transformers.AutoModelForCausalLM.from_pretrained
    base = load(folder / "model", dtype=torch.float32).eval()
    ids = torch.randint(0, base.config.vocab_size, (4, 16), generator=torch.Generator().manual_seed(0))
    plain = base(ids).logits
    trained = load_peft(checks, "peft", base, folder / "peft", keys=lambda key: True)(ids).logits
    checks.expect((trained - plain).abs().max() > 1e-2, "peft: the adapter changes what the model says")

    config = json.loads((folder / "serving/adapter_config.json").read_text(encoding="utf-8"))
    saved = load_file(folder / "serving/adapter_model.safetensors")
    ranks = {tensor.shape[0] for key, tensor in saved.items() if ".lora_A." in key}
    ranks |= {tensor.shape[1] for key, tensor in saved.items() if ".lora_B." in key}
    odd = [key for key in ("rank_pattern", "alpha_pattern", "modules_to_save", "use_dora") if config.get(key)]
    checks.expect(
        not odd and ranks == {config["r"]} and config["r"] in SERVING_RANKS,
        f"serving: one rank {config['r']}, that of all tensors; settings that servers refuse: {odd}",
    )
    served = load_peft(checks, "serving", load(folder / "model", dtype=torch.float32), folder / "serving", keys=lambda key: True)
    merged = load(folder / "merged", dtype=torch.float32).eval()
    # The merged model rounds the sum of base and adapter, the others never form it.
    for name, model, most in (("serving", served, EXPORT_TOLERANCE), ("merged", merged, LOGIT_TOLERANCE)):
        difference = (model(ids).logits - trained).abs().max().item()
        checks.expect(
            difference <= most,
            f"{name}: largest difference of a logit from the PEFT export {difference:.2e} (at most {most:.0e})",
        )
    before = load_file(folder / "model/model.safetensors")
    check_gguf(checks, folder / "gguf/adapter.gguf", before, merged.state_dict(), base.config)


def questions():
    """Questions about passages of four letters and digits, of which the digit is the answer; short as the model's texts."""
    for i in range(120):
        words = [chr(ord("a") + (7 * i + j) % 26) for j in range(3)]
        words.insert(i % 4, str(i % 10))
        passage = " ".join(words)
        answers = {"text": [str(i % 10)], "answer_start": [passage.index(str(i % 10))]}
        yield {"question": "n?", "context": passage, "answers": answers}


def train_questions(binary, folder):
    """A run over a tiny RoBERTa in `folder`, its merged model, and its answers."""
    (folder / "model").mkdir()
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROBERTA / file, folder / "model")
    with open(folder / "questions.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in questions())
    (folder / "run.toml").write_text(QUESTIONS_RUN, encoding="utf-8")
    run_fedpipe(binary, "run", "run.toml", "--quiet", cwd=folder)
    run_fedpipe(binary, "export", "run", "--to", "merged", "--format", "merged", cwd=folder)
    output = run_fedpipe(binary, "predict", "run", "--data", "questions.jsonl", "--json", cwd=folder)
    return [json.loads(line) for line in output.splitlines()]


@torch.no_grad()
def check_questions(checks, folder, found):
    """FedPipe's answers, the most probable span of each passage, against those of PEFT and of the merged model."""
    load = transformers.AutoModelForQuestionAnswering.from_pretrained
    # The base's own configuration counts other labels; where an answer begins and ends is two.
    base = load(folder / "model", dtype=torch.float32, num_labels=2)
    adapted = load_peft(checks, "answers", base, folder / "run/adapter", keys=lambda key: True)
    for name, model, place in (("answers", adapted, "model"), ("merged", load(folder / "merged"), "merged")):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / place)
        model.eval()
        same, difference = 0, 0.0
        for record, answer in zip(questions(), found, strict=True):
            inputs = tokenizer(record["question"], record["context"], return_tensors="pt", return_offsets_mapping=True)
            offsets = inputs.pop("offset_mapping")[0].tolist()
            passage = [i for i, sequence in enumerate(inputs.sequence_ids(0)) if sequence == 1]
            output = model(**inputs)
            starts, ends = output.start_logits[0].log_softmax(0), output.end_logits[0].log_softmax(0)
            spans = [(i, j) for i in passage for j in passage if i <= j < i + MAX_ANSWER_TOKENS]
            first, last = max(spans, key=lambda span: (starts[span[0]] + ends[span[1]]).item())
            text = record["context"][offsets[first][0] : offsets[last][1]].strip()
            same += text == answer["answer"]
            probability = (starts[first] + ends[last]).exp().item()
            difference = max(difference, abs(probability - answer["probability"]))
        checks.expect(same == len(found), f"{name}: the same answer to {same} of {len(found)} questions")
        checks.expect(difference <= LOGIT_TOLERANCE, f"{name}: largest difference of a probability {difference:.2e}")


def in_llama_cpp_order(weight, heads):
    """The rows of a query or key with each head's two halves interleaved, as llama.cpp's converter writes them."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def check_gguf(checks, path, before, after, config):
    modules = {
        "attn_q": ("self_attn.q_proj", config.num_attention_heads),
        "attn_k": ("self_attn.k_proj", config.num_key_value_heads),
        "attn_v": ("self_attn.v_proj", None),
        "ffn_down": ("mlp.down_proj", None),
    }
    reader = gguf.GGUFReader(path)
    keys = ("general.type", "general.architecture", "adapter.type", "adapter.lora.alpha")
    kind, architecture, adapter, alpha = (reader.get_field(key).contents() for key in keys)
    checks.expect(
        (kind, architecture, adapter) == ("adapter", "llama", "lora") and alpha > 0,
        f"gguf: {kind} of type {adapter} for {architecture}, alpha {alpha}",
    )
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    names = sorted(name.removesuffix(".lora_a") for name in tensors if name.endswith(".lora_a"))
    checks.expect(
        sorted(tensors) == sorted(name + end for name in names for end in (".lora_a", ".lora_b")),
        f"gguf: {len(tensors)} tensors, two a weight",
    )
    worst, largest, ranks, changed = 0.0, 0.0, set(), set()
    for name in names:
        _, layer, stored, _ = name.split(".")
        module, heads = modules[stored]
        full = f"model.layers.{layer}.{module}.weight"
        changed.add(full)
        order = (lambda weight: in_llama_cpp_order(weight, heads)) if heads else (lambda weight: weight)
        a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        ranks.add(b.shape[1])
        change = alpha / b.shape[1] * (b @ a)
        worst = max(worst, (order(before[full].float()) + change - order(after[full])).abs().max().item())
        largest = max(largest, change.abs().max().item())
    untouched = [name for name in before if name in after and name not in changed]
    same = all(torch.equal(before[name].float(), after[name]) for name in untouched)
    checks.expect(
        worst <= EXPORT_TOLERANCE and largest > 1e-3 and same,
        f"gguf: largest difference of a weight {worst:.2e} over {len(names)} weights of ranks {sorted(ranks)} "
        f"(at most {EXPORT_TOLERANCE:.0e}; the changes reach {largest:.2e})",
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

    with tempfile.TemporaryDirectory() as folder:
        merged = Path(folder) / "merged"
        run_fedpipe(options.fedpipe, "export", options.run, "--to", merged, "--format", "merged")
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

    print("questions", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        check_questions(checks, Path(folder), train_questions(options.fedpipe, Path(folder)))

    print("a language model", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        train_llama(options.fedpipe, Path(folder))
        check_language_model(checks, Path(folder))
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

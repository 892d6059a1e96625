#!/usr/bin/env python3
"""Makes crates/testkit/fixtures/bert-tiny/: a small random BERT classifier and what PyTorch and PEFT compute with it.

Run it with `make golden`. Everything is float32 on one thread from fixed seeds. golden.json, which this script writes
beside the tensors, lists every tensor and the conventions.

    config.json, model.safetensors    BertForSequenceClassification, as save_pretrained writes it
    golden.safetensors, golden.json   inputs, expected outputs and gradients, with and without LoRA; AdamW steps
    peft-adapter/                     the LoRA adapter, as PEFT writes it
"""

import json
import os
import re
import shutil
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import transformers
from safetensors.torch import save_file

FOLDER = Path(__file__).resolve().parent.parent / "crates/testkit/fixtures/bert-tiny"
LENGTHS = [1, 7, 12, 3, 20]
LABELS = [2, 0, 1, 1, 0]
VOCABULARY = 96
TRAINED_WEIGHTS = re.compile(
    r"bert\.encoder\.layer\.\d+\."
    r"(attention\.self\.(query|key|value)|attention\.output\.dense|intermediate\.dense|output\.dense)\.weight"
    r"|bert\.pooler\.dense\.weight|classifier\.(weight|bias)"
)


def random(seed, *shape, low=-0.5, high=0.5):
    """Uniform values from a seed of their own, so that adding a tensor leaves the others as they were."""
    return torch.empty(*shape).uniform_(low, high, generator=torch.Generator().manual_seed(seed))


def tiny_model():
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        type_vocab_size=2,
        num_labels=3,
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout=0.0,
        layer_norm_eps=1e-12,
        initializer_range=0.2,
    )
    model = transformers.BertForSequenceClassification(config)
    # Every parameter is set here: the library's own initialisation zeroes the biases, sets the norms to one, and could
    # change between versions.
    with torch.no_grad():
        for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
            if "LayerNorm.weight" in name:
                parameter.copy_(random(index, *parameter.shape, low=0.6, high=1.4))
            elif name.endswith(".bias"):
                parameter.copy_(random(index, *parameter.shape, low=-0.2, high=0.2))
            else:
                generator = torch.Generator().manual_seed(index)
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 0.2, generator=generator))
    return model


def ragged_batch():
    """Token ids end to end, and the same padded to the longest with an attention mask."""
    generator = torch.Generator().manual_seed(1000)
    sequences = [torch.randint(1, VOCABULARY, (length,), generator=generator) for length in LENGTHS]
    types = [(torch.arange(length) >= (length + 1) // 2).long() for length in LENGTHS]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": torch.cat(sequences),
        "token_type_ids": torch.cat(types),
        "offsets": torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)]),
        "padded": {
            "input_ids": pad(sequences, batch_first=True),
            "token_type_ids": pad(types, batch_first=True),
            "attention_mask": pad([torch.ones_like(ids) for ids in sequences], batch_first=True),
        },
    }


def forward(model, inputs):
    model.eval()
    model.zero_grad()
    output = model(**inputs, labels=torch.tensor(LABELS), output_hidden_states=True)
    output.loss.backward()
    return output


def base_values(batch):
    """Outputs and gradients of the plain model, once with all token types 0 and once with two segments."""
    values = {}
    model = tiny_model()
    padded = dict(batch["padded"])
    segments = model(**padded).logits
    padded["token_type_ids"] = torch.zeros_like(padded["token_type_ids"])
    output = forward(model, padded)
    mask = padded["attention_mask"].bool()
    for layer, hidden in enumerate(output.hidden_states):
        values[f"base.hidden.{layer}"] = hidden[mask]
    values["base.pooled"] = model.bert(**padded).pooler_output
    values["base.logits"] = output.logits
    values["base.loss"] = output.loss.reshape(1)
    values["base.segments.logits"] = segments
    for name, parameter in model.named_parameters():
        if TRAINED_WEIGHTS.fullmatch(name):
            values[f"base.grad.{name}"] = parameter.grad
    return values


def lora_values(batch):
    """The same with LoRA: rank 3 on query and value, 5 on attention.output.dense, scale 2 everywhere, and the head."""
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=3,
        lora_alpha=6,
        lora_dropout=0.0,
        target_modules=["query", "value", "attention.output.dense"],
        rank_pattern={"attention.output.dense": 5},
        alpha_pattern={"attention.output.dense": 10},
    )  # task_type makes PEFT train and save the classifier: modules_to_save = ["classifier", "score"].
    model = peft.get_peft_model(tiny_model(), config)
    # PEFT records where the base came from; a folder that both can be moved to is named instead.
    model.peft_config["default"].base_model_name_or_path = "bert-tiny"
    trainable = sorted(item for item in model.named_parameters() if item[1].requires_grad)
    with torch.no_grad():
        for index, (name, parameter) in enumerate(trainable):
            if "classifier" in name:
                parameter.copy_(random(3000 + index, *parameter.shape, low=-0.4, high=0.4))
            else:
                parameter.copy_(random(2000 + index, *parameter.shape, low=-0.3, high=0.3))
    for name, module in model.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            assert module.scaling == {"default": 2.0}, (name, module.scaling)
    padded = dict(batch["padded"])
    padded["token_type_ids"] = torch.zeros_like(padded["token_type_ids"])
    output = forward(model, padded)
    values = {"lora.logits": output.logits, "lora.loss": output.loss.reshape(1)}
    for name, parameter in trainable:
        # The keys of the saved adapter: without the adapter's name and PEFT's wrapper around the saved module.
        key = name.replace(".default", "").replace(".modules_to_save", "")
        values[f"lora.grad.{key}"] = parameter.grad
    model.save_pretrained(FOLDER / "peft-adapter")
    (FOLDER / "peft-adapter" / "README.md").unlink(missing_ok=True)
    sort_target_modules(FOLDER / "peft-adapter" / "adapter_config.json")

    base = transformers.AutoModelForSequenceClassification.from_pretrained(FOLDER)
    reloaded = peft.PeftModel.from_pretrained(base, FOLDER / "peft-adapter").eval()
    assert torch.equal(reloaded(**padded).logits, output.logits), "the saved adapter computes something else"
    merged = reloaded.merge_and_unload()(**padded).logits
    assert (merged - output.logits).abs().max() < 1e-5, "the merged model computes something else"
    return values


def sort_target_modules(path):
    """PEFT writes this set in an order that changes from run to run."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def adamw_values():
    """Three steps of torch.optim.AdamW on one tensor with fixed gradients."""
    parameter = torch.nn.Parameter(random(4000, 4, 5))
    optimizer = torch.optim.AdamW([parameter], lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    values = {"adamw.param.0": parameter.detach().clone()}
    for step in range(1, 4):
        parameter.grad = random(4000 + step, 4, 5)
        values[f"adamw.grad.{step}"] = parameter.grad.clone()
        optimizer.step()
        values[f"adamw.param.{step}"] = parameter.detach().clone()
    state = optimizer.state[parameter]
    values["adamw.exp_avg.3"], values["adamw.exp_avg_sq.3"] = state["exp_avg"], state["exp_avg_sq"]
    return values


def description(values):
    return {
        "made_by": "scripts/golden_bert.py",
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
        "conventions": {
            "input_ids": "[tokens], the sequences end to end; sequence i is input_ids[offsets[i]..offsets[i + 1]]",
            "token_type_ids": "[tokens], for base.segments.logits only; all other values use type 0 everywhere",
            "labels": "[sequences]; loss is the mean cross-entropy over them",
            "base.hidden.N": "[tokens, hidden]: N = 0 after the embeddings and their norm, else after layer N - 1",
            "base.pooled": "[sequences, hidden]: tanh(dense(first token))",
            "base.grad.NAME": "d loss / d NAME of model.safetensors, same shape (out, in)",
            "lora.*": "the same batch with peft-adapter/ (its own classifier too); the scale alpha / r is 2 everywhere",
            "lora.grad.KEY": "d loss / d KEY of peft-adapter/adapter_model.safetensors, same shape",
            "adamw.*": "lr 1e-2, betas 0.9 and 0.999, eps 1e-8, weight_decay 0.01; param.N is after N steps",
        },
        "lengths": LENGTHS,
        "labels": LABELS,
        "base": {"loss": values["base.loss"].item(), "logits": values["base.logits"].tolist()},
        "lora": {"loss": values["lora.loss"].item(), "logits": values["lora.logits"].tolist()},
        "tensors": {
            name: {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
            for name, value in sorted(values.items())
        },
    }


def main():
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    tiny_model().save_pretrained(FOLDER)
    batch = ragged_batch()
    values = {name: batch[name] for name in ("input_ids", "token_type_ids", "offsets")}
    values["labels"] = torch.tensor(LABELS)
    values |= base_values(batch) | lora_values(batch) | adamw_values()
    values = {name: value.detach().contiguous() for name, value in values.items()}
    save_file(values, FOLDER / "golden.safetensors", metadata={"format": "pt"})
    with open(FOLDER / "golden.json", "w", encoding="utf-8") as out:
        json.dump(description(values), out, indent=1)
        out.write("\n")
    # safetensors makes its files private to the user.
    for file in FOLDER.rglob("*.safetensors"):
        file.chmod(0o644)
    print(f"{FOLDER}: loss {values['base.loss'].item():.6f}, with LoRA {values['lora.loss'].item():.6f}")


if __name__ == "__main__":
    main()

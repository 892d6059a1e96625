#!/usr/bin/env python3
"""Makes crates/testkit/fixtures/decoders/NAME/: tiny random decoders and what PyTorch and transformers compute with them.

Run it with `make golden`. Everything is float32 on one thread from fixed seeds. Each folder holds one model as
save_pretrained writes it (`config.json`, `model.safetensors`) and `golden.safetensors`:

    input_ids, offsets      [tokens] end to end; sequence i is input_ids[offsets[i]..offsets[i + 1]]
    targets                 [tokens]: the token to predict after each, -1 where none counts
    lm.logits               [tokens, vocabulary]
    lm.loss                 mean cross-entropy over the targets that count
    lm.grad.NAME            d lm.loss / d NAME, for the linear weights of the layers
    labels                  [sequences]
    score.weight            [classes, hidden], the head of the sequence classifier
    cls.logits, cls.loss    [sequences, classes], and their mean cross-entropy
    cls.grad.NAME           d cls.loss / d NAME, for the same weights and score.weight
    lora.cls.logits         of the classifier with peft-adapter/, a LoRA adapter as PEFT writes it, and its own head
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

FOLDER = Path(__file__).resolve().parent.parent / "crates/testkit/fixtures/decoders"
LENGTHS = [1, 7, 12, 3, 20]
LABELS = [2, 0, 1, 1, 0]
VOCABULARY = 64
LINEAR = re.compile(r".*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|c_attn|c_proj|c_fc)\.weight")

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_labels": 3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# A frequency low enough for each of the three ranges of Llama 3's scaling: θ is small, so that heads of 4 suffice.
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

# Modules that the adapter of a fixture adapts; the other fixtures have none.
ADAPTED = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "mlp.c_proj"]}

MODELS = {
    # Grouped heads, tied embeddings.
    "llama": (transformers.LlamaConfig, {**SMALL, "tie_word_embeddings": True}),
    # Every bias, scaled frequencies, heads wider than hidden/heads, an output head of its own.
    "llama3": (
        transformers.LlamaConfig,
        {**SMALL, "rope_parameters": LLAMA3, "head_dim": 6, "attention_bias": True, "mlp_bias": True},
    ),
    "llama-linear": (
        transformers.LlamaConfig,
        {**SMALL, "num_hidden_layers": 1, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    # A window in every layer, and in the upper one only; some sequences are longer.
    "mistral": (transformers.MistralConfig, {**SMALL, "sliding_window": 5}),
    "qwen2": (transformers.Qwen2Config, {**SMALL, "tie_word_embeddings": True}),
    "qwen3": (
        transformers.Qwen3Config,
        {**SMALL, "head_dim": 8, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "gpt2": (
        transformers.GPT2Config,
        {
            "vocab_size": VOCABULARY,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 32,
            "num_labels": 3,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    ),
}


def randomise(model):
    """Every parameter anew: the library's own initialisation sets norms to one and biases to zero."""
    with torch.no_grad():
        for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
            generator = torch.Generator().manual_seed(index)
            if "norm" in name or re.search(r"\.ln_(1|2|f)\.weight", name):
                parameter.copy_(torch.empty(parameter.shape).uniform_(0.6, 1.4, generator=generator))
            elif name.endswith(".bias"):
                parameter.copy_(torch.empty(parameter.shape).uniform_(-0.3, 0.3, generator=generator))
            else:
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 0.35, generator=generator))
    return model.eval()


def ragged_batch():
    """Token ids end to end, and the same padded to the longest with an attention mask."""
    generator = torch.Generator().manual_seed(1000)
    # No padding token among them: the classifier looks for the last other one.
    sequences = [torch.randint(1, VOCABULARY, (length,), generator=generator) for length in LENGTHS]
    targets = []
    for length, ids in zip(LENGTHS, sequences):
        # As with a prompt before a completion: only the later half counts, and nothing follows the last token.
        after = torch.cat([ids[1:], torch.tensor([-1])])
        targets.append(torch.where(torch.arange(length) >= length // 2, after, -1))
    pad = torch.nn.utils.rnn.pad_sequence
    return sequences, targets, {
        "input_ids": pad(sequences, batch_first=True),
        "attention_mask": pad([torch.ones_like(ids) for ids in sequences], batch_first=True),
    }


def gradients(model, prefix):
    kept = [(n, p) for n, p in model.named_parameters() if LINEAR.fullmatch(n) or n == "score.weight"]
    return {f"{prefix}.grad.{name}": parameter.grad for name, parameter in kept}


def with_adapter(classifier, modules, folder, padded):
    """Logits with LoRA of rank 3 and alpha 6, which is saved to the folder."""
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=3, lora_alpha=6, target_modules=modules, fan_in_fan_out="c_attn" in modules
    )
    model = peft.get_peft_model(classifier, config).eval()
    # PEFT records where the base came from; a folder that both can be moved to is named instead.
    model.peft_config["default"].base_model_name_or_path = folder.parent.name
    with torch.no_grad():
        trainable = sorted(item for item in model.named_parameters() if item[1].requires_grad)
        for index, (_, parameter) in enumerate(trainable):
            generator = torch.Generator().manual_seed(2000 + index)
            parameter.copy_(torch.empty(parameter.shape).uniform_(-0.3, 0.3, generator=generator))
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    # PEFT writes this set in an order that changes from run to run.
    path = folder / "adapter_config.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    saved["target_modules"].sort()
    path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return model(**padded).logits


def values_of(name):
    config_class, settings = MODELS[name]
    config = config_class(**settings)
    model = randomise(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager"))
    folder = FOLDER / name
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)

    sequences, targets, padded = ragged_batch()
    mask = padded["attention_mask"].bool()
    flat = torch.cat(targets)
    logits = model(**padded).logits[mask]
    loss = torch.nn.functional.cross_entropy(logits, flat, ignore_index=-1)
    loss.backward()
    values = {
        "input_ids": torch.cat(sequences),
        "offsets": torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)]),
        "targets": flat,
        "lm.logits": logits,
        "lm.loss": loss.reshape(1),
        **gradients(model, "lm"),
    }

    classifier_class = transformers.AutoModelForSequenceClassification
    classifier = classifier_class.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(7)
        classifier.score.weight.copy_(torch.empty(classifier.score.weight.shape).normal_(0.0, 0.35, generator=generator))
    output = classifier(**padded, labels=torch.tensor(LABELS))
    output.loss.backward()
    values |= {
        "labels": torch.tensor(LABELS),
        "score.weight": classifier.score.weight,
        "cls.logits": output.logits,
        "cls.loss": output.loss.reshape(1),
        **gradients(classifier, "cls"),
    }
    if name in ADAPTED:
        values["lora.cls.logits"] = with_adapter(classifier, ADAPTED[name], folder / "peft-adapter", padded)
    values = {key: value.detach().clone().contiguous() for key, value in values.items()}
    save_file(values, folder / "golden.safetensors", metadata={"format": "pt"})
    # safetensors makes its files private to the user.
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)
    print(f"{name}: language model loss {loss.item():.6f}, classifier loss {output.loss.item():.6f}")


def main():
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name in MODELS:
        values_of(name)


if __name__ == "__main__":
    main()

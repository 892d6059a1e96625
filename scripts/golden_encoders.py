#!/usr/bin/env python3
"""Makes crates/testkit/fixtures/encoders/NAME/: tiny random encoders and what PyTorch and transformers compute with them.

Run it with `make golden`. Everything is float32 on one thread from fixed seeds. Each folder holds one sequence classifier
as save_pretrained writes it (`config.json`, `model.safetensors`), its tokenizer, and:

    golden.safetensors
        input_ids, offsets      [tokens] end to end; sequence i is input_ids[offsets[i]..offsets[i + 1]]
        labels                  [sequences]
        cls.pooled              [sequences, hidden], the first token's state, which the head reads
        cls.logits, cls.loss    [sequences, classes], and their mean cross-entropy
        cls.grad.NAME           d cls.loss / d NAME, for the linear weights of the layers and the head
        lora.logits             with peft-adapter/, a LoRA adapter as PEFT writes it, and its own head
    qa.safetensors              of the same layers under a head that finds answers
        head.weight, head.bias  the head, `qa_outputs`
        spans                   [sequences, 2], first and last token of the answer
        logits, loss            [tokens, 2], and the mean over sequences of what each costs by itself
        grad.NAME               d loss / d NAME, for the linear weights of the layers and the head
        lora.logits             with peft-qa/, a LoRA adapter as PEFT writes it, and its own head
    tokens.json                 texts, and their tokens cut to so many
    windows.json                questions with passages, and the windows that they are cut into
"""

import json
import os
import re
import shutil
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import safetensors.torch
import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

FOLDER = Path(__file__).resolve().parent.parent / "crates/testkit/fixtures/encoders"
LENGTHS = [1, 7, 12, 3, 20]
LABELS = [2, 0, 1, 1, 0]
MAX_LENGTH = 22
LINEAR = re.compile(r".*\.(query|key|value|q_lin|k_lin|v_lin|out_lin|lin1|lin2|layer\.\d+\..*dense)\.weight")

TEXTS = [
    "Oil prices rose again on Tuesday.",
    "",
    " a leading space",
    "The harbour's wheat, 3.5% dearer: naïve café owners in Zürich disagree 🌾",
    "<pad><s> or </s>, [PAD][CLS] or [SEP]",
    "x",
]


def byte_level():
    """RoBERTa's kind: a byte-level BPE with <s> and </s> around a text."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=288,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    ends = {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>"}
    return tokenizer, {**ends, "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}


def word_pieces():
    """BERT's kind: word pieces with [CLS] and [SEP] around a text."""
    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [*special.values(), *letters, *(f"##{letter}" for letter in letters), *".,:%'", "the", "oil", "##ing"]
    tokenizer = tokenizers.Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in special.values()])
    return tokenizer, special


# Question, passage, and the answer with its first character; no answer where there is none.
QUESTIONS = [
    ("Who is dearer?", "The harbour's wheat, 3.5% dearer: naïve café owners in Zürich disagree 🌾 oil.", ("café owners", 40)),
    (" Where?", "Oil prices rose again in the harbour on Tuesday, the price of oil in Zürich.", ("Zürich", 69)),
    ("What?", "Oil rose.", ("Oil rose.", 0)),
    ("Why?", "wheat 🌾🌾 wheat", None),
]
WINDOWS = [(30, 8), (24, 0)]

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}

# The configuration, the tokenizer, and the modules that the adapter adapts and saves whole (None: as PEFT chooses).
MODELS = {
    "roberta": (
        transformers.RobertaConfig,
        {
            "vocab_size": 288,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            # Room for 22 tokens: positions begin after the padding token's id.
            "max_position_embeddings": 24,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
            "num_labels": 3,
            **NO_DROPOUT,
        },
        byte_level,
        (["query", "value", "output.dense"], None),
    ),
    # A table of positions that no longer are the sines that it began as, and the other kind of GELU.
    "distilbert": (
        transformers.DistilBertConfig,
        {
            "vocab_size": 88,
            "dim": 16,
            "hidden_dim": 24,
            "n_layers": 2,
            "n_heads": 4,
            "max_position_embeddings": 24,
            "sinusoidal_pos_embds": True,
            "activation": "gelu_new",
            "num_labels": 3,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "seq_classif_dropout": 0.0,
        },
        word_pieces,
        (["q_lin", "v_lin", "lin2"], ["pre_classifier", "classifier"]),
    ),
}


def randomise(model):
    """Every parameter anew: the library's own initialisation sets norms to one and biases and some rows to zero."""
    with torch.no_grad():
        for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
            generator = torch.Generator().manual_seed(index)
            if re.search(r"(LayerNorm|layer_norm)\.weight", name):
                parameter.copy_(torch.empty(parameter.shape).uniform_(0.6, 1.4, generator=generator))
            elif name.endswith(".bias"):
                parameter.copy_(torch.empty(parameter.shape).uniform_(-0.3, 0.3, generator=generator))
            else:
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 0.35, generator=generator))
    return model.eval()


def ragged_batch(vocabulary, padding):
    """Sequences of token ids, and the same padded to the longest with an attention mask."""
    generator = torch.Generator().manual_seed(1000)
    sequences = [torch.randint(0, vocabulary, (length,), generator=generator) for length in LENGTHS]
    # A text may spell out the padding token: it is attended to like any other.
    sequences[2][4] = padding
    pad = torch.nn.utils.rnn.pad_sequence
    return sequences, {
        "input_ids": pad(sequences, batch_first=True, padding_value=padding),
        "attention_mask": pad([torch.ones_like(ids) for ids in sequences], batch_first=True),
    }


def with_adapter(model, task, modules, saved, folder):
    """The model with LoRA of rank 3 and alpha 6, which is saved to the folder."""
    config = peft.LoraConfig(task_type=task, r=3, lora_alpha=6, target_modules=modules, modules_to_save=saved)
    model = peft.get_peft_model(model, config).eval()
    # PEFT records where the base came from; a folder that both can be moved to is named instead.
    model.peft_config["default"].base_model_name_or_path = folder.parent.name
    with torch.no_grad():
        trainable = sorted(item for item in model.named_parameters() if item[1].requires_grad)
        for index, (_, parameter) in enumerate(trainable):
            generator = torch.Generator().manual_seed(2000 + index)
            parameter.copy_(torch.empty(parameter.shape).uniform_(-0.3, 0.3, generator=generator))
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    # PEFT writes these sets in an order that changes from run to run.
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("target_modules", "modules_to_save"):
        config[key].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return model


def save_tokenizer(made, folder):
    tokenizer, special = made
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        # Neither model tells segments apart.
        model_input_names=["input_ids", "attention_mask"],
        **{f"{role}_token": token for role, token in special.items()},
    )
    fast.save_pretrained(folder)
    tokens = [fast(text, truncation=True, max_length=MAX_LENGTH)["input_ids"] for text in TEXTS]
    cases = ",\n".join(
        "  " + json.dumps({"text": text, "ids": ids}, ensure_ascii=False) for text, ids in zip(TEXTS, tokens)
    )
    (folder / "tokens.json").write_text(
        f'{{\n "max_length": {MAX_LENGTH},\n "cases": [\n{cases}\n ]\n}}\n', encoding="utf-8"
    )
    save_windows(fast, folder)


def save_answers(name, config, sequences, folder):
    """Sequences go through the model one by one: padded, `transformers` counts the padding as places of an answer."""
    config.num_labels = 2
    model = randomise(transformers.AutoModelForQuestionAnswering.from_config(config, attn_implementation="eager"))
    prefix = f"{model.base_model_prefix}."
    saved = safetensors.torch.load_file(folder / "model.safetensors")
    layers = {key: value for key, value in saved.items() if key.startswith(prefix)}
    missing, unexpected = model.load_state_dict(layers, strict=False)
    assert all(key.startswith("qa_outputs") for key in missing) and not unexpected, (missing, unexpected)

    def logits_of(model):
        outputs = [model(input_ids=ids[None]) for ids in sequences]
        return torch.cat([torch.stack([o.start_logits[0], o.end_logits[0]], 1) for o in outputs])

    spans = torch.tensor([[i % length, max(i % length, length - 1 - i)] for i, length in enumerate(LENGTHS)])
    loss = sum(
        model(input_ids=ids[None], start_positions=start[None], end_positions=end[None]).loss
        for ids, (start, end) in zip(sequences, spans)
    ) / len(sequences)
    loss.backward()
    kept = [(n, p) for n, p in model.named_parameters() if LINEAR.fullmatch(n) or n.startswith("qa_outputs")]
    values = {
        "head.weight": model.qa_outputs.weight,
        "head.bias": model.qa_outputs.bias,
        "spans": spans,
        "logits": logits_of(model),
        "loss": loss.reshape(1),
        **{f"grad.{n}": p.grad for n, p in kept},
    }
    values = {key: value.detach().clone().contiguous() for key, value in values.items()}
    modules, _ = MODELS[name][3]
    adapted = with_adapter(model, "QUESTION_ANS", modules, ["qa_outputs"], folder / "peft-qa")
    values["lora.logits"] = logits_of(adapted).detach().clone()
    save_file(values, folder / "qa.safetensors", metadata={"format": "pt"})


def save_windows(fast, folder):
    """Each window's tokens, which of them are the passage's, and the place of the answer, as run_qa.py labels it."""
    cases = []
    for max_length, stride in WINDOWS:
        for question, passage, answer in QUESTIONS:
            found = fast(
                question, passage, truncation="only_second", max_length=max_length, stride=stride,
                return_overflowing_tokens=True, return_offsets_mapping=True,
            )
            windows = []
            for window, (ids, offsets) in enumerate(zip(found["input_ids"], found["offset_mapping"])):
                own = [i for i, sequence in enumerate(found.sequence_ids(window)) if sequence == 1]
                start = end = 0
                if answer and own:
                    first, last = answer[1], answer[1] + len(answer[0])
                    if offsets[own[0]][0] <= first and offsets[own[-1]][1] >= last:
                        start = max(i for i in own if offsets[i][0] <= first)
                        end = min(i for i in own if offsets[i][1] >= last)
                windows.append({"ids": ids, "passage": [own[0], own[-1] + 1] if own else [], "span": [start, end]})
            assert answer is None or passage[answer[1] :].startswith(answer[0]), (passage, answer)
            cases.append({
                "max_length": max_length, "stride": stride, "question": question, "passage": passage,
                "answers": [] if answer is None else [{"text": answer[0], "answer_start": answer[1]}],
                "windows": windows,
            })
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    (folder / "windows.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def values_of(name):
    config_class, settings, tokenizer, (modules, saved) = MODELS[name]
    config = config_class(**settings)
    folder = FOLDER / name
    model = randomise(transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager"))
    model.save_pretrained(folder)
    save_tokenizer(tokenizer(), folder)

    sequences, padded = ragged_batch(config.vocab_size, config.pad_token_id)
    output = model(**padded, labels=torch.tensor(LABELS), output_hidden_states=True)
    output.loss.backward()
    heads = ("classifier", "pre_classifier")
    kept = [(n, p) for n, p in model.named_parameters() if LINEAR.fullmatch(n) or n.startswith(heads)]
    values = {
        "input_ids": torch.cat(sequences),
        "offsets": torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)]),
        "labels": torch.tensor(LABELS),
        "cls.pooled": output.hidden_states[-1][:, 0],
        "cls.logits": output.logits,
        "cls.loss": output.loss.reshape(1),
        **{f"cls.grad.{n}": p.grad for n, p in kept},
    }
    values = {key: value.detach().clone().contiguous() for key, value in values.items()}
    adapted = with_adapter(model, "SEQ_CLS", modules, saved, folder / "peft-adapter")
    values["lora.logits"] = adapted(**padded).logits.detach().clone()
    save_file(values, folder / "golden.safetensors", metadata={"format": "pt"})
    save_answers(name, config, sequences, folder)
    # safetensors makes its files private to the user.
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)
    print(f"{name}: loss {output.loss.item():.6f}")


def main():
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name in MODELS:
        values_of(name)


if __name__ == "__main__":
    main()

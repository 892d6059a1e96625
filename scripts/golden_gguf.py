#!/usr/bin/env python3
"""Makes the fixtures of the GGUF reader, with the `gguf` package of the ggml project and with transformers.

Usage: PYTHONPATH=.venv-golden .venv-interop/bin/python scripts/golden_gguf.py   (`make golden` does it)

    crates/testkit/fixtures/gguf/blocks.json   blocks of random bytes in every format, and their values by `gguf`
    crates/testkit/fixtures/gguf/tiny.gguf     a Llama of one layer and 32 hidden values, tensors in many formats
    crates/testkit/fixtures/gguf/tiny.json     its configuration and tensors as transformers reads them
    crates/testkit/fixtures/gguf/rope.json     Llama 3's rotary scaling as its files store it
    crates/testkit/fixtures/gguf/smollm2.json  of assets/models/SmolLM2-135M-Instruct-GGUF: configuration, the sums and
                                               a few values of some tensors, and tokens of the texts below

Tokens are transformers', checked here against a byte-level BPE of a few lines in Python. The pieces into which the
other pre-tokenizers cut a text are those of transformers' own classes for Qwen2 and Llama 3.
"""

import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import gguf
import numpy as np
import regex
from gguf import GGMLQuantizationType as Type
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "crates/testkit/fixtures/gguf"
REAL = ROOT / "assets/models/SmolLM2-135M-Instruct-GGUF/SmolLM2-135M-Instruct.Q4_1.gguf"

# Format -> where its scales (float16) lie in a block, so that random bytes are made sane there.
SCALES = {
    Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0],
    Type.Q2_K: [80, 82], Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
}
CONFIG = [
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "max_position_embeddings", "rms_norm_eps", "vocab_size", "tie_word_embeddings", "model_type", "hidden_act",
]
TEXTS = [
    "", " ", "  ", "\n", "\t\t x", "Hello world", " Hello  world ", "hello\r\n\r\nworld\n", "a\n\n\n b\n  \n",
    "I'm sure they've said we'll go; it's John's, isn't it?", "I'M SURE THEY'VE SAID", "can't o'clock 'tis ''quoted''",
    "1", "12", "123", "1234567890", "3.14159, 2,718 and 1e-10", "In 1999 there were 24x7=168 hours.", "x1y22z333",
    "½ ² Ⅷ ٣٤٥ １２３", "naïve café Ångström", "nai\u0308ve cafe\u0301", "Straße ŒUVRE ﬁn", "Привет, мир! Как дела?",
    "你好，世界。今天天气很好", "日本語のテキスト カタカナ", "한국어 문장입니다", "مرحبا بالعالم", "שלום עולם", "नमस्ते दुनिया",
    "ไทยไม่มีเว้นวรรค", "😀 👩‍👩‍👧‍👦 🇩🇪 ❤️", "a\u00a0b\u2003c\u200bd\ufeffe", "\u0000\u0001\u007f",
    "def f(x):\n    return x ** 2  # square\n", "<div class=\"a\">&amp;</div>", "https://example.org/a?b=c&d=%20#e",
    "C:\\path\\to\\file.txt", "!!!???...---___", "$5.00 (50% off!) @user #tag", "supercalifragilisticexpialidocious",
    "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n", "text<|endoftext|>more<repo_name>x<file_sep>",
    " <|im_end|> ", "<|im_start|", "<|IM_END|>", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "the the the  the   the",
]


def write(name, value):
    text = json.dumps(value, indent=1, ensure_ascii=True)
    # A list of numbers stays on its line.
    text = regex.sub(r"\[\s+([^\[\]{}\"]*?)\s+\]", lambda m: "[" + regex.sub(r"\s+", " ", m[1]) + "]", text)
    (FIXTURES / name).write_text(text + "\n", encoding="utf-8")


def blocks():
    random = np.random.default_rng(1)
    out = {}
    for type_, places in SCALES.items():
        values, size = gguf.GGML_QUANT_SIZES[type_]
        raw = random.integers(0, 256, (3, size), dtype=np.uint8)
        for place in places:
            scale = random.uniform(-0.1, 0.1, 3).astype(np.float16)
            raw[:, place : place + 2] = scale.view(np.uint8).reshape(3, 2)
        expected = gguf.quants.dequantize(raw, type_).reshape(-1)
        assert expected.shape == (3 * values,) and np.isfinite(expected).all()
        bits = expected.astype(np.float32).view(np.uint32)
        out[type_.name] = {"type": int(type_), "raw": raw.tobytes().hex(), "bits": [int(b) for b in bits]}
    return out


def byte_alphabet():
    """The character that byte-level BPE writes for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return {b: chr(b if b in plain else next(others)) for b in range(256)}


def tiny(path):
    random = np.random.default_rng(2)
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "hell")]
    tokens = ["<s>", "</s>", *byte_alphabet().values(), *(a + b for a, b in merges)]
    hidden, inner, heads, kv, dim = 32, 64, 4, 2, 8
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(dim)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges([f"{a} {b}" for a, b in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{% for m in messages %}{{ bos_token + m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}")
    tensors = {
        "token_embd.weight": ((len(tokens), hidden), Type.Q8_0), "output_norm.weight": ((hidden,), Type.F32),
        "output.weight": ((len(tokens), hidden), Type.Q4_0), "blk.0.attn_norm.weight": ((hidden,), Type.F32),
        "blk.0.attn_q.weight": ((hidden, hidden), Type.Q5_0), "blk.0.attn_k.weight": ((kv * dim, hidden), Type.Q4_1),
        "blk.0.attn_v.weight": ((kv * dim, hidden), Type.F16), "blk.0.attn_output.weight": ((hidden, hidden), Type.BF16),
        "blk.0.ffn_norm.weight": ((hidden,), Type.F32), "blk.0.ffn_gate.weight": ((inner, hidden), Type.Q5_1),
        "blk.0.ffn_up.weight": ((inner, hidden), Type.Q8_0), "blk.0.ffn_down.weight": ((hidden, inner), Type.Q4_1),
    }
    for name, (shape, type_) in tensors.items():
        values = random.normal(0, 0.1, shape).astype(np.float32)
        if type_ in (Type.F32, Type.F16):
            writer.add_tensor(name, values.astype(np.float16) if type_ == Type.F16 else values)
        else:
            raw = gguf.quants.quantize(values, type_)
            writer.add_tensor(name, raw, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def model(path, names, values):
    """Configuration, and of some tensors the sum of all values and of their squares, and the values at some places."""
    loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype="float32")
    config = loaded.config.to_dict()
    state = loaded.state_dict()
    out = {"config": {key: config[key] for key in CONFIG}, "tensors": {}}
    out["config"]["rope_theta"] = config["rope_parameters"]["rope_theta"]
    for name in names or state:
        tensor = state[name].numpy()
        flat = tensor.reshape(-1)
        places = np.unique(np.linspace(0, flat.size - 1, values).astype(int))
        out["tensors"][name] = {
            "shape": list(tensor.shape),
            "sum": float(flat.astype(np.float64).sum()), "squares": float((flat.astype(np.float64) ** 2).sum()),
            "places": [int(p) for p in places], "bits": [int(b) for b in flat[places].view(np.uint32)],
        }
    return out


class PlainBpe:
    """Byte-level BPE with digits apart, as SmolLM's tokenizer is described; slow, for comparison only."""

    PIECES = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

    def __init__(self, tokens, merges, specials):
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(merges)}
        self.specials = regex.compile("(" + "|".join(map(regex.escape, specials)) + ")")
        self.alphabet = byte_alphabet()

    def encode(self, text):
        ids = []
        for part in self.specials.split(text):
            if self.specials.fullmatch(part):
                ids.append(self.ids[part])
                continue
            for stretch in regex.findall(r"\p{N}|\P{N}+", part):
                for piece in self.PIECES.findall(stretch):
                    ids += self.merge([self.alphabet[b] for b in piece.encode()])
        return ids

    def merge(self, symbols):
        while len(symbols) > 1:
            rank, at = min((self.ranks.get(pair, 1 << 60), i) for i, pair in enumerate(zip(symbols, symbols[1:])))
            if rank == 1 << 60:
                break
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        # As every tokenizer of the kind does with a byte that is no token.
        return [self.ids[symbol] for symbol in symbols if symbol in self.ids]


def smollm2():
    layers = ["model.layers.0.", "model.layers.29."]
    modules = ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"]
    names = ["model.embed_tokens.weight", "model.norm.weight"] + [f"{l}{m}.weight" for l in layers for m in modules]
    out = model(REAL, names, 24)
    reader = gguf.GGUFReader(REAL)
    tokens, merges, types = (reader.fields[f"tokenizer.ggml.{k}"].contents() for k in ("tokens", "merges", "token_type"))
    plain = PlainBpe(tokens, merges, [t for t, kind in zip(tokens, types) if kind == 3])
    tokenizer = AutoTokenizer.from_pretrained(REAL.parent, gguf_file=REAL.name)
    rows = []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if ids != plain.encode(text):
            print(f"transformers and the plain BPE differ; the plain one is kept: {text!r}", ids, plain.encode(text))
        rows.append({"text": text, "ids": plain.encode(text)})
    out["tokens"] = rows
    out["special"] = {name: [getattr(tokenizer, name), getattr(tokenizer, f"{name}_id")] for name in ("bos_token", "eos_token")}
    llama3 = TikTokenConverter.__init__.__defaults__[1]
    out["pieces"] = {
        "qwen2": [[p for p, _ in split(QWEN2).pre_tokenize_str(normalizers.NFC().normalize_str(t))] for t in TEXTS],
        "llama-bpe": [[p for p, _ in split(llama3).pre_tokenize_str(t)] for t in TEXTS],
    }
    return out


def split(pattern):
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bytes_])


def rope(head_dim, theta, factor):
    """Llama 3's divisors of the rotary frequencies, as its converter stores them."""
    scaling = {"rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 8192
    config = LlamaConfig(hidden_size=head_dim, num_attention_heads=1, rope_parameters=scaling)
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
    plain = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    divisors = (plain / frequencies.double().numpy()).astype(np.float32)
    return {"head_dim": head_dim, "theta": theta, "factor": factor, "bits": [int(b) for b in divisors.view(np.uint32)]}


def main():
    FIXTURES.mkdir(parents=True, exist_ok=True)
    write("blocks.json", blocks())
    tiny(FIXTURES / "tiny.gguf")
    write("tiny.json", model(FIXTURES / "tiny.gguf", None, 40))
    write("rope.json", [rope(64, 500000.0, 32.0), rope(128, 500000.0, 8.0)])
    write("smollm2.json", smollm2())


if __name__ == "__main__":
    main()

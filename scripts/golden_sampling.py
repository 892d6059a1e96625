#!/usr/bin/env python3
"""Makes crates/testkit/fixtures/sampling.json: what transformers does with logits, and its beam search.

The model is a GPT-2 whose logits are a table by position and last token, so that a test needs the table only. `sample`
holds the logits that `generate` drew from, after every processor, in its own order; `beam` the texts and scores of
`generate(num_beams=...)`. Run it with `make golden`.
"""

import json
from pathlib import Path

import torch
import transformers
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions

PATH = Path(__file__).resolve().parent.parent / "crates/testkit/fixtures/sampling.json"
VOCABULARY, POSITIONS, END = 20, 14, 3
PROMPT = [5, 9, 5]

SAMPLE = [
    {},
    {"temperature": 0.7},
    {"temperature": 2.5},
    {"top_k": 5},
    {"top_k": 1},
    {"top_k": 500},
    {"top_p": 0.9},
    {"top_p": 0.3},
    {"top_p": 0.001},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.6},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    {"min_new_tokens": 6},
    {"temperature": 0.8, "top_k": 8, "top_p": 0.8},
    {"temperature": 1.5, "top_k": 6, "top_p": 0.95, "repetition_penalty": 1.2, "no_repeat_ngram_size": 2,
     "min_new_tokens": 4},
]  # fmt: skip
BEAM = [
    {"num_beams": beams, "length_penalty": penalty, "early_stopping": early}
    for beams in (2, 3, 5)
    for penalty in (0.0, 1.0, 2.0, -1.0)
    for early in (False, True, "never")
] + [
    {"num_beams": 9, "length_penalty": 0.6, "early_stopping": False},
    {"num_beams": 4, "length_penalty": 1.0, "early_stopping": False, "no_repeat_ngram_size": 2},
    {"num_beams": 4, "length_penalty": 1.0, "early_stopping": True, "repetition_penalty": 1.4},
    {"num_beams": 3, "length_penalty": 1.0, "early_stopping": True, "min_new_tokens": 7},
    {"num_beams": 3, "length_penalty": 1.0, "early_stopping": False, "eos_token_id": [3, 7, 11]},
    {"num_beams": 3, "length_penalty": 1.0, "early_stopping": False, "max_new_tokens": 1},
    {"num_beams": 3, "length_penalty": 0.0, "early_stopping": "never", "max_new_tokens": 2},
    # So many ends that the best candidates may all be ends.
    {"num_beams": 2, "length_penalty": 3.0, "early_stopping": "never", "eos_token_id": [0, 3, 6, 8, *range(10, 20)]},
]


class Table(GPT2LMHeadModel):
    """Logits of the token after position i: table[i][token at i]."""

    def forward(self, input_ids, **_):
        positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        return CausalLMOutputWithCrossAttentions(logits=self.table[positions, input_ids])


def numbers(values):
    return [None if v == -torch.inf else round(v, 6) for v in values.tolist()]


def run(model, prompt, settings, **more):
    settings = {"max_new_tokens": 10, "eos_token_id": END, **settings, **more}
    settings = {"pad_token_id": 0, "use_cache": False, **settings}
    config = GenerationConfig(return_dict_in_generate=True, output_scores=True, **settings)
    prompt = torch.tensor([prompt])
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)


def beam(model, prompt, settings):
    found = run(model, prompt, settings, num_return_sequences=settings["num_beams"])
    texts = []
    ends = settings.get("eos_token_id", [END])
    for row, score in zip(found.sequences.tolist(), found.sequences_scores.tolist()):
        row = row[len(prompt) :]
        length = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        texts.append({"tokens": row[:length], "score": score})
    return {"prompt": prompt, "settings": settings, "texts": texts}


def main():
    torch.manual_seed(11)
    torch.set_num_threads(1)
    model = Table(GPT2Config(vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=8, n_layer=1, n_head=1)).eval()
    # The end is likely enough for texts of many lengths.
    table = torch.randn(POSITIONS, VOCABULARY, VOCABULARY) * 1.5
    table[:, :, END] += 1.0
    # As the file holds them.
    model.table = (table * 1000).round() / 1000
    samples, beams = [], []
    for settings in SAMPLE:
        found = run(model, PROMPT, settings, do_sample=True)
        tokens = found.sequences[0].tolist()[len(PROMPT) :]
        samples.append({"settings": settings, "tokens": tokens, "logits": [numbers(step[0]) for step in found.scores]})
    for settings in BEAM:
        beams.append(beam(model, PROMPT, settings))
    # Prompts for which it matters when the search ends.
    for prompt in ([token] * 3 for token in range(VOCABULARY)):
        settings = {"num_beams": 2, "length_penalty": 2.0}
        found = [beam(model, prompt, {**settings, "early_stopping": early}) for early in (False, True, "never")]
        if found[0]["texts"] != found[2]["texts"]:
            beams += found
    fixture = {
        "made_by": "scripts/golden_sampling.py",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "prompt": PROMPT,
        "end": END,
        "table": [[[round(v, 3) for v in row] for row in rows] for rows in model.table.tolist()],
        "sample": samples,
        "beam": beams,
    }
    PATH.write_text(json.dumps(fixture, separators=(",", ":")).replace("},{", "},\n{") + "\n", encoding="utf-8")
    print(f"{PATH}: {len(beams)} beam searches, {PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()

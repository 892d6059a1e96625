#!/usr/bin/env python3
"""Makes crates/testkit/fixtures/metrics.json: values of metrics as their usual packages compute them.

Classes by scikit-learn, answers by torchmetrics (SQuAD), BLEU by sacreBLEU, ROUGE by rouge-score, NIST
by NLTK where there is one reference. NLTK has no form of NIST for several references that mteval and the E2E challenge
would agree with, so these come from `nist` below, which is held to NLTK's for one reference.

The sentences named e2e-* are a few references of the E2E NLG challenge's test set (Novikova, Dušek and Rieser 2017),
CC BY-SA 4.0. Run it with `make golden`.
"""

import json
import math
import random
from collections import Counter
from functools import reduce
from importlib.metadata import version
from operator import or_
from pathlib import Path

from nltk.translate.nist_score import corpus_nist
from nltk.util import ngrams
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torchmetrics.functional.text import squad

PATH = Path(__file__).resolve().parent.parent / "crates/testkit/fixtures/metrics.json"

CAT = ["The cat sat on the mat.", "There is a cat on the mat."]
E2E = [
    (
        "Blue Spice is a coffee shop in the city centre.",
        [
            "A coffee shop in the city centre area called Blue Spice.",
            "Blue Spice is a coffee shop in city centre.",
        ],
    ),
    (
        "The Blue Spice is a coffee shop by the riverside.",
        [
            "There is a coffee shop Blue Spice in the riverside area.",
            "At the riverside, there is a coffee shop called The Blue Spice.",
        ],
    ),
    (
        "Blue Spice, near Crowne Plaza Hotel, has a customer rating of 5 out of 5.",
        [
            "The coffee shop Blue Spice is based near Crowne Plaza Hotel and has a high customer rating of 5 out of 5.",
            "The Blue Spice coffee shop, near Crowne Plaza Hotel, has a customer rating of 5 out of 5.",
            "If you want a coffee shop rated 5 out of 5 pick Blue Spice. It is located near Crowne Plaza Hotel.",
        ],
    ),
]
# Each is a corpus: texts with their references.
CORPORA = {
    "perfect": [("The cat sat on the mat.", ["The cat sat on the mat."])],
    "nothing in common": [("completely different words stand here", ["The cat sat on the mat."])],
    "empty hypothesis": [("", ["The cat sat on the mat."])],
    "empty reference": [("The cat sat on the mat.", [""])],
    "both empty": [("", [""])],
    "empty among others": [("", ["Nothing was said."]), ("The cat sat on the mat.", CAT), ("A dog ran away.", [""])],
    "only spaces": [(" \t ", ["a b c d e"])],
    "one word": [("cat", ["cat"])],
    "three words": [("the cat sat", ["the cat sat"])],
    "shorter": [("The cat sat", CAT)],
    "longer": [("The cat sat on the mat and then it went on to sit on the other mat, which was red.", CAT)],
    "repeated words": [("the the the the the the the", ["The cat is on the mat.", "the cat the mat the end"])],
    "swapped": [("on the mat the cat sat", ["the cat sat on the mat"])],
    "length between two references": [("a b c d e", ["a b c", "a b c d e f g"])],
    "two references of one distance": [("a b c d e f", ["a b c d e f g h", "a b c d"])],
    "best reference last": [("A cat is on the mat now.", ["Dogs bark.", "It rains.", "A cat is on the mat now."])],
    "case": [("THE CAT SAT ON THE MAT.", ["the cat sat on the mat."])],
    "numbers": [("It costs 1,234.50 and 3.5% of 7-8 items.", ["It costs 1,234.50, or 3.5 % of 7 - 8 items."])],
    "stops": [("Wait... what?! U.S.A., e.g., 5. Yes", ["Wait ... what ?! U.S.A. , e.g. , 5 . Yes"])],
    "apostrophes": [("It's the dog's, isn't it?", ["It's the dogs' , is n't it ?"])],
    "quotes and brackets": [('He said: "no" (twice) [sic] {x} a/b', ['He said "no" twice (sic) {x} a / b'])],
    "entities": [("A &amp; B &lt;c&gt; &quot;d&quot; e", ['A & B <c> "d" e'])],
    "skipped": [("a <skipped>b c-\nd e\nf g", ["a b cd e f g"])],
    "symbols": [("a*b+c=d^2 ~ 50% #x @y $3 a|b\\c `q`", ["a * b + c = d ^ 2 ~ 50 % # x @ y $ 3 a | b \\ c ` q `"])],
    "accents": [("Größe, naïveté et café à Zürich", ["Größe , naïveté et cafés à Zürich"])],
    "unicode case": [("ÄRGER IM ΟΔΟΣ STRASSE İstanbul", ["ärger im οδος straße i̇stanbul"])],
    "scripts": [("猫は マット の 上 に いる。 кошка на ковре", ["猫は マット の 上 に いた。 кошка на ковре"])],
    "odd spaces": [("a\u00a0b\u2003c\x1cd\u200be f", ["a b c d\u200be f"])],
    "emoji": [("I ❤️ cats 🐈 a lot !", ["I ❤️ cats 🐈 so much !"])],
    "stems": [("The cats were running happily to the nearest stations", ["The cat ran happy to a nearer station"])],
    "e2e-first": E2E[:1],
    "e2e-second": E2E[1:2],
    "e2e": E2E,
    "e2e and others": E2E + [("The cat sat on the mat.", CAT), ("It costs 1,234.50.", ["It costs 1,234.5 now."])],
}
ANSWERS = [
    ("Denver Broncos", ["Denver Broncos", "The Broncos"]),
    ("the Denver Broncos!", ["Denver  broncos"]),
    ("in the year 1976", ["1976", "the year 1976"]),
    ("An apple a day", ["apple day"]),
    ("Theatre and another", ["theatre & another"]),
    ("", [""]),
    ("", ["something"]),
    ("something", [""]),
    ("the", ["a"]),
    ("U.S.A.", ["USA"]),
    ("rock-and-roll", ["rock and roll"]),
    ("to be or not to be", ["to be to be to be", "not"]),
    ("café—the best", ["café— best"]),
    ("“The” answer", ["“ ” answer"]),
    ("$3,000", ["3000 dollars", "3000"]),
    ("a\u00a0man\tand\na dog", ["man and dog"]),
    ("Ünïcödé Ωmega", ["ünïcödé ωMEGA"]),
]


def nist(hypotheses, references, orders=5):
    """Doddington (2002), equation 3: a run matches as often as the reference that has it most."""
    counts, length = Counter(), 0.0
    for group in references:
        for reference in group:
            for n in range(1, orders + 1):
                counts.update(ngrams(reference, n))
            counts[()] += len(reference)
        length += sum(map(len, group)) / len(group)
    score = 0.0
    for n in range(1, orders + 1):
        information, total = 0.0, 0
        for hypothesis, group in zip(hypotheses, references):
            found = Counter(ngrams(hypothesis, n))
            total += sum(found.values())
            matching = found & reduce(or_, (Counter(ngrams(reference, n)) for reference in group))
            information += sum(k * math.log2(counts[run[:-1]] / counts[run]) for run, k in matching.items())
        score += information / max(total, 1)
    ratio = sum(map(len, hypotheses)) / length if length else 1.0
    if ratio >= 1:
        return score
    return score * math.exp(math.log(0.5) / math.log(1.5) ** 2 * math.log(ratio) ** 2) if ratio > 0 else 0.0


def text_values(corpus):
    hypotheses = [hypothesis for hypothesis, _ in corpus]
    groups = [references for _, references in corpus]
    streams = [[g[i] if i < len(g) else None for g in groups] for i in range(max(map(len, groups)))]
    values = {
        "bleu": BLEU().corpus_score(hypotheses, streams).score,
        "bleu-lowercase": BLEU(lowercase=True).corpus_score(hypotheses, streams).score,
    }
    cut = Tokenizer13a()
    tokens = lambda text: cut(text.lower().rstrip()).split()
    cut_hypotheses = [tokens(h) for h in hypotheses]
    cut_references = [[tokens(r) for r in group] for group in groups]
    values["nist"] = nist(cut_hypotheses, cut_references)
    if all(len(group) == 1 for group in groups) and min(map(len, cut_hypotheses)) >= 5 and cut_references[0][0]:
        expected = corpus_nist(cut_references, cut_hypotheses, n=5)
        assert math.isclose(values["nist"], expected, rel_tol=1e-12), (corpus, values["nist"], expected)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    scores = [scorer.score_multi(group, hypothesis) for hypothesis, group in corpus]
    for kind, name in [("rouge1", "rouge-1"), ("rouge2", "rouge-2"), ("rougeL", "rouge-l")]:
        values[name] = sum(s[kind].fmeasure for s in scores) / len(scores)
    return values


def classes():
    generator = random.Random(7)
    cases = [
        ([0, 1, 1, 0], [0, 1, 1, 0]),
        ([0, 0, 0, 0], [0, 1, 0, 1]),
        ([1, 0], [0, 1]),
        ([2, 2, 2], [0, 1, 5]),
        ([3], [3]),
        ([generator.randrange(2) for _ in range(200)], [generator.randrange(2) for _ in range(200)]),
    ]
    right = [generator.randrange(7) for _ in range(300)]
    cases.append(([r if generator.random() < 0.7 else generator.randrange(9) for r in right], right))
    return [
        {
            "predicted": predicted,
            "right": right,
            "accuracy": accuracy_score(right, predicted),
            "macro-f1": f1_score(right, predicted, average="macro", zero_division=0),
            "matthews": matthews_corrcoef(right, predicted),
        }
        for predicted, right in cases
    ]


def answers():
    cases = []
    for prediction, wanted in ANSWERS:
        target = {"answers": {"answer_start": [0] * len(wanted), "text": wanted}, "id": "0"}
        values = squad([{"prediction_text": prediction, "id": "0"}], [target])
        found = {"exact-match": values["exact_match"].item(), "answer-f1": values["f1"].item()}
        cases.append({"hypothesis": prediction, "references": wanted, "values": found})
    return cases


def main():
    packages = ["sacrebleu", "rouge-score", "nltk", "scikit-learn", "torchmetrics"]
    fixture = {
        "made_by": "scripts/golden_metrics.py",
        "versions": {name: version(name) for name in packages},
        "licence": "texts of the corpora e2e*: E2E NLG challenge, CC BY-SA 4.0",
        "classes": classes(),
        "answers": answers(),
        "corpora": [
            {
                "name": name,
                "texts": [{"hypothesis": h, "references": r} for h, r in corpus],
                "values": text_values(corpus),
            }
            for name, corpus in CORPORA.items()
        ],
    }
    PATH.write_text(json.dumps(fixture, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{PATH}: {len(fixture['corpora'])} corpora")


if __name__ == "__main__":
    main()

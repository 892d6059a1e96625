#!/usr/bin/env python3
"""Questions about restaurants from the E2E NLG data: what `task.kind = "span-qa"` reads.

    scripts/e2e_questions.py devset.csv questions.jsonl

A record asks for one attribute of a meaning representation; its passage is the description that people wrote, and the
answer what of it is the attribute's value, to the letter. An attribute that the representation lacks is asked for once in
a while: then the passage holds no answer. Columns as Hugging Face has them for SQuAD; `name` is the restaurant.
"""

import csv
import json
import re
import sys

QUESTIONS = {
    "name": "What is the place called?",
    "eatType": "What kind of place is it?",
    "food": "What food do they serve?",
    "area": "Where is it?",
    "near": "What is it near?",
    "customer rating": "How do customers rate it?",
    "priceRange": "What does it cost?",
}
# One of so many attributes that a restaurant lacks is asked for.
LACKING = 4


def records(path):
    with open(path, encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            attributes = dict(re.findall(r"([^,\[\]]+?)\[([^\]]*)\]", row["mr"].replace(", ", ",")))
            passage = row["ref"]
            for place, (attribute, question) in enumerate(QUESTIONS.items()):
                value = attributes.get(attribute)
                if value is None and (number + place) % LACKING:
                    continue
                start = passage.find(value) if value else -1
                if value is not None and start < 0:
                    # Said in other words: not an answer that can be pointed at.
                    continue
                yield {
                    "id": f"{number}-{attribute}",
                    "name": attributes.get("name", ""),
                    "question": question,
                    "context": passage,
                    "answers": {"text": [value] if value else [], "answer_start": [start] if value else []},
                }


def main():
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    count = 0
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        for record in records(sys.argv[1]):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    print(f"{count} questions in {sys.argv[2]}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Makes crates/testkit/fixtures/parquet: the same records as JSON Lines and as a Parquet file of pyarrow's.

The columns are those that Hugging Face has for conversations (`messages`) and for SQuAD (`answers`), lists and structs
that may be missing anywhere; three records to a row group. Run it with `make golden`.
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

FOLDER = Path(__file__).resolve().parent.parent / "crates/testkit/fixtures/parquet"
SCHEMA = pa.schema([
    ("question", pa.string()),
    ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
    ("answers", pa.struct([("text", pa.list_(pa.string())), ("answer_start", pa.list_(pa.int32()))])),
    ("scores", pa.struct([("inner", pa.struct([("share", pa.float64()), ("good", pa.bool_())]))])),
])


def record(number):
    turns = [{"role": "user", "content": f"Wie groß ist {number}?"}, {"role": "assistant", "content": f'"{number}"\n'}]
    answers = [f"answer {i}" for i in range(number % 3)]
    return {
        "question": f"question {number}",
        "messages": turns * (number % 4),
        "answers": {"text": answers, "answer_start": [10 * i + number for i in range(len(answers))]},
        "scores": {"inner": {"share": number / 4, "good": number % 2 == 0}},
    }


def main():
    records = [record(number) for number in range(8)]
    records[3]["messages"][1]["content"] = None
    records[5]["scores"]["inner"] = None
    FOLDER.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(records, SCHEMA), FOLDER / "nested.parquet", row_group_size=3)
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (FOLDER / "nested.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()

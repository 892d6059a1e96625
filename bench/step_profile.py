#!/usr/bin/env python3
"""Where the processor's time goes in our training steps: samples of `perf record`, grouped by what the code is for.

    bench/step_profile.py [--symbols N] [-- OPTIONS OF bench_steps]

Needs Linux's perf and `cargo build --release -p fedpipe-model --example bench_steps`. Samples count time on a
processor, so threads that sleep do not show. Attention's products run in the same kernels as those over weights and
count as products.
"""

import argparse
import collections
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The first that matches counts.
GROUPS = [
    ("packing and decoding", r"gemm::(pack|transpose)|round_to_bf16|codes::|frozen::widen|to_bf16"),
    ("products", r"::multiply|gemm::|dense::"),
    ("attention, but its products", r"attention::"),
    ("norms, activations, other element-wise", r"activation::|norm::|adamw::|vector::|(binary|unary)_map|cpu_backend"),
    ("allocation, page faults, memset, memcpy", r"mi_|memset|memmove|memcpy|clear_page|fault|_mm_|mmap|alloc|page"),
    ("autograd, thread pools, waiting", r"candle_core|rayon|crossbeam|sched|futex|spin|task_switch|__rust_begin_short"),
]


def group_of(symbol):
    return next((name for name, pattern in GROUPS if re.search(pattern, symbol)), "other")


def read_report(report):
    """(share, symbol) of every line of `perf report` that has one, the largest first."""
    found = (re.match(r"\s*([\d.]+)%\s+\[[.k]\]\s+(.*\S)", line) for line in report.splitlines())
    return sorted(((float(line.group(1)), line.group(2)) for line in found if line), reverse=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    parser.add_argument("--program", type=Path, default=target / "release/examples/bench_steps")
    parser.add_argument("--symbols", type=int, default=20, help="how many symbols to list (20)")
    parser.add_argument("options", nargs="*", help="of bench_steps, after `--`")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "perf.data"
        record = ["perf", "record", "--quiet", "--freq=499", f"--output={data}", "--", options.program]
        report = ["perf", "report", "--stdio", "--no-children", "--fields=overhead,sym", f"--input={data}"]
        try:
            print(subprocess.run([*record, *options.options], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout)
            done = subprocess.run(report, check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    symbols = read_report(done.stdout)
    groups = collections.Counter()
    for share, symbol in symbols:
        groups[group_of(symbol)] += share
    print("| group | share of the samples |\n|---|--:|")
    for name, share in groups.most_common():
        print(f"| {name} | {share:.1f} % |")
    print()
    for share, symbol in symbols[: options.symbols]:
        print(f"{share:6.2f} %  {group_of(symbol):40}  {symbol}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

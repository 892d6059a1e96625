#!/usr/bin/env python3
"""What plans are worth, by runs of the real program: prints tables and writes bench/results/plans-NAME-DATE.json.

    bench/plans.py truth    [--e2e FILE.csv]          predicted memory and step time beside measured ones, 13 plans
    bench/plans.py uniform  [--seeds 42 1 2]          FedPipe's plan beside single settings that fit every silo, with one deadline
    bench/plans.py ablation [--seeds 42 1 2]          each part of the planner switched off in turn
    bench/plans.py grid     [--seeds 42]              "auto" beside settings that a person would try
    bench/plans.py curves RESULTS.json FILE.svg       accuracy over the run's clock

Runs are kept in --runs and not made twice, so an experiment that was interrupted goes on. The run's clock is modelled from
a measured profile of this machine: what else the machine does changes nothing but `truth`, which needs it quiet. Python 3.9
or newer, no packages; `cargo build --release -p fedpipe` first.
"""

import argparse
import datetime
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Raised when a field of the results changes its meaning.
FORMAT = 2
# Accuracies that settings race to.
TARGETS = [0.94, 0.95, 0.96]
# Seconds on the run's clock that runs last.
LENGTH_S = 25.0

# name -> (workload, settings): batch, ranks, format, depth and recomputation differ.
TRUTH = {
    "R8, bf16, batch 8, rank 8": ("r8", {"b": 8, "r": 8, "f": "bf16"}),
    "R8, bf16, batch 32, rank 16": ("r8", {"b": 32, "r": 16, "f": "bf16"}),
    "R8, f32, batch 8, rank 8": ("r8", {"b": 8, "r": 8, "f": "f32"}),
    "R8, nf4, batch 16, rank 4": ("r8", {"b": 16, "r": 4, "f": "nf4"}),
    "R8, nf3, batch 8, rank 16, recomputed": ("r8", {"b": 8, "r": 16, "f": "nf3", "again": True}),
    "R8, bf16, batch 16, rank 8, 2 layers": ("r8", {"b": 16, "r": 8, "f": "bf16", "below": 4}),
    "R8, nf8, batch 32, rank 2, 3 layers": ("r8", {"b": 32, "r": 2, "f": "nf8", "below": 3}),
    "R8, bf16, batch 32, rank 8, recomputed": ("r8", {"b": 32, "r": 8, "f": "bf16", "again": True}),
    "E2E, bf16, batch 4, rank 8": ("e2e", {"b": 4, "r": 8, "f": "bf16"}),
    "E2E, nf4, batch 8, rank 16": ("e2e", {"b": 8, "r": 16, "f": "nf4"}),
    "E2E, nf4, batch 4, rank 4, 10 layers": ("e2e", {"b": 4, "r": 4, "f": "nf4", "below": 20}),
    "E2E, bf16, batch 8, rank 8, recomputed": ("e2e", {"b": 8, "r": 8, "f": "bf16", "again": True}),
    "E2E, int8, batch 16, rank 8, 15 layers": ("e2e", {"b": 16, "r": 8, "f": "int8", "below": 15}),
}
# Single settings for all four silos of examples/r8.toml: every combination.
UNIFORM = [
    {"f": base, "b": batch, "s": steps, "r": rank, "below": below}
    for base in ("bf16", "nf4") for batch in (4, 8, 16, 32) for steps in (10, 20, 40) for rank in (2, 4, 8)
    for below in range(6)
]
# How many of those that fit are tried in one short run: the soonest to a target by the planner's own reckoning, each of another
# number of steps or another depth. And how many of these are raced: those that got furthest, at most so many of one number of
# steps, since their depths make little difference.
TRIED, RACED, RACED_OF_STEPS = 12, 7, 4
# The lengths of raced runs, FedPipe's and others. The learning rate falls to 0 over the whole of a run, so a short run gets
# sooner to where it can get: the sooner counts.
RACE_LENGTHS_S = [15.0, LENGTH_S, 45.0]
# Of docs/planner.md: what the head brings forward, the rank of half the worth, the critical batch, and what k times the steps
# of examples/r8.toml bring: k to this power.
HEAD, HALF_RANK, CRITICAL_BATCH, STEP_POWER = 0.1, 1.0, 32, 0.85
LOCAL_STEPS = 20
# What is switched off, and what stands in its place.
ABLATIONS = {
    "all of it": [],
    "importance → random": ["federation.importance='random'"],
    "ranks → one for all that train": ["adapter.ranks=[8]"],
    "the merged adapter's rank → 16": ["federation.server_rank=16"],
    "batch → 4 in every silo": ["plan.batch_sizes=[4]"],
    "steps → 20 in every silo": ["plan.step_multiples=[1]"],
    "batch → 4, steps → 20 in every silo": ["plan.batch_sizes=[4]", "plan.step_multiples=[1]"],
    "formats → nf4 in every silo": ["plan.base_formats=['nf4']"],
}
# What a person would try by hand, beside what "auto" makes of it.
GRID = {
    **{f"learning rate {rate}, {steps} local steps": [f"training.learning_rate={rate}", f"training.local_steps={steps}"]
       for rate, steps in [(3e-3, 20), (1e-3, 20), (1e-2, 20), (3e-3, 10), (3e-3, 40)]},
    "learning rate auto": ["training.learning_rate='auto'"],
    "local steps auto": ["training.local_steps='auto'"],
    "maximum length auto": ["training.max_length='auto'"],
    "target modules auto": ["adapter.target_modules='auto'"],
    "all six auto": [f"{key}='auto'" for key in (
        "training.learning_rate", "training.local_steps", "training.max_length", "training.warmup_ratio", "adapter.scaling",
        "adapter.target_modules")],
}


OURS = "FedPipe's plan"
# What the weights of examples/r8.toml's layers are called, up to the layer's number.
LAYERS = "bert.encoder.layer."
# How texts are split for a race.
EVENLY = ["federation.partition={kind='iid'}"]


class Failure(Exception):
    """Something that the user can act on; printed without a traceback."""


def fixed(setting, layers_prefix):
    """Options that leave the planner one choice: every weight at or above layer `below`, at one rank."""
    options = [
        f"plan.batch_sizes=[{setting['b']}]",
        "plan.step_multiples=[1]",
        f"plan.base_formats=['{setting['f']}']",
        f"adapter.ranks=[{setting['r']}]",
        f"training.recompute={str(setting.get('again', False)).lower()}",
        "federation.importance='uniform'",
        "federation.deadline_s=1e6",
    ]
    if "s" in setting:
        options.append(f"training.local_steps={setting['s']}")
    below = setting.get("below", 0)
    if below:
        never = [f"'{layers_prefix}{layer}.*'" for layer in range(below)]
        options.append(f"plan.never_tune=[{', '.join(never)}]")
    else:
        options.append("plan.always_tune=['*']")
    return options


def run(options, name, config, sets):
    """The events of a run, which is made if it is not there."""
    folder = options.runs / name
    if not (folder / "summary.json").is_file():
        # What an interruption left.
        shutil.rmtree(folder, ignore_errors=True)
        command = [options.fedpipe, "run", config, "--quiet", "--output", folder]
        for setting in sets:
            command += ["--set", setting]
        done = subprocess.run([str(part) for part in command], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise Failure(f"{name}: ended with {done.returncode}\n{done.stderr.strip()}")
        print(f"ran {name}", file=sys.stderr, flush=True)
    events = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in events], json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def rounds_of(events):
    """The rounds in order; of one that was done again after an interruption the last."""
    return list({event["round"]: event for event in events if event["event"] == "round-finished"}.values())


def curve(events, summary):
    """Seconds on the run's clock and accuracy after every round; what came before the first round counts."""
    rounds = rounds_of(events)
    clock = summary["virtual_seconds"] - sum(record["seconds"] for record in rounds)
    points = []
    for record in rounds:
        clock += record["seconds"]
        if record["metrics"]:
            points.append((clock, record["metrics"]["accuracy"]))
    return points


def time_to(points, target):
    """Seconds until the accuracy is first reached, or None."""
    return next((seconds for seconds, accuracy in points if accuracy >= target), None)


def within(points, seconds):
    """The accuracy of the last round that ended by then."""
    return next((accuracy for end, accuracy in reversed(points) if end <= seconds), None)


def at_the_end(points, seconds):
    """The mean accuracy of the last three rounds that ended by then: one round swings by a point or more."""
    last = [accuracy for end, accuracy in points if end <= seconds][-3:]
    return statistics.mean(last) if last else None


def planned(options, name, given):
    """The plan of examples/r8.toml, and the seconds of a round of its slowest silo."""
    command = [options.fedpipe, "plan", ROOT / "examples/r8.toml", "--json"]
    for setting in given:
        command += ["--set", setting]
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failure(f"{name}: no plan\n{done.stderr.strip()}")
    plan = json.loads(done.stdout)
    return plan, max(sum(silo["time"].values()) for silo in plan["silos"].values())


def race(options, name, seed, sets, length_s):
    """A run on examples/r8.toml of as many rounds as it has time for at the plan's own pace; its curve. Texts are split evenly,
    so that silos differ in their hardware alone: with uneven labels accuracy swings by several points from round to round."""
    config = ROOT / "examples/r8.toml"
    given = [*EVENLY, *sets, f"federation.seed={seed}"]
    plan, pace = planned(options, name, given)
    rounds = max(1, round(length_s / pace))
    name = f"{name}-{length_s:.0f}s-seed{seed}"
    events, summary = run(options, name, config, [
        *given, f"federation.rounds={rounds}", "evaluation.examples=800", "evaluation.final_examples=1",
    ])
    check_planned(events, plan, options.runs / name)
    return {"seed": seed, "rounds": rounds, "pace_s": pace, "curve": curve(events, summary)}


def check_planned(events, plan, folder):
    """Refuses a run that was kept from another profile of the machine, whose clock is not that of the others."""
    planned = next(event for event in events if event["event"] == "planned")
    if planned["silos"] != plan["silos"]:
        raise Failure(f"{folder} was planned from another profile or by another version; remove it or choose other --runs")


def mean(values):
    """The mean, or None where a value is missing."""
    return None if any(value is None for value in values) else statistics.mean(values)


def soonest(runs_by_length, target):
    """For each seed the least seconds to the target over all lengths, or None."""
    of_seeds = zip(*runs_by_length.values())
    times = [[time_to(run["curve"], target) for run in runs] for runs in of_seeds]
    return [min((seconds for seconds in of_seed if seconds is not None), default=None) for of_seed in times]


def together(runs_by_length, target):
    """The least seconds at which the mean over the seeds of the latest accuracies is the target, or None."""
    times = []
    for runs in runs_by_length.values():
        ends = sorted(end for run in runs for end, _ in run["curve"])
        levels = ((end, mean([within(run["curve"], end) for run in runs])) for end in ends)
        times.append(next((end for end, level in levels if level is not None and level >= target), None))
    return min((seconds for seconds in times if seconds is not None), default=None)


def races(options, settings):
    """Every setting, at each of its lengths, with every seed: name -> length -> runs."""
    rows = {}
    for name, (folder, sets, lengths) in settings.items():
        rows[name] = {
            f"{length:.0f}": [race(options, folder, seed, sets, length) for seed in options.seeds] for length in lengths
        }
        print(race_table({name: rows[name]}).splitlines()[-1], file=sys.stderr, flush=True)
    return rows


def shown(value, form):
    return "–" if value is None else format(value, form)


def race_table(rows):
    """Time to the targets and accuracy at the end of each length, by setting."""
    lengths = sorted({length for row in rows.values() for length in row}, key=float)
    heads = [f"s to {target:.0%}, by seed" for target in TARGETS] + [f"accuracy after {length} s" for length in lengths]
    lines = [f"| setting | {' | '.join(heads)} |", "|---|" + "---|" * len(TARGETS) + "--:|" * len(lengths)]
    for name, row in rows.items():
        cells = [", ".join(shown(seconds, ".0f") for seconds in soonest(row, target)) for target in TARGETS]
        for length in lengths:
            ends = [at_the_end(run["curve"], float(length)) for run in row.get(length, [])]
            cells.append(shown(mean(ends) if ends else None, ".4f"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def slug(text):
    return "".join(letter if letter.isalnum() else "-" for letter in text.lower()).strip("-")


def soonest_settings(options, importance):
    """The single settings that fit every silo's memory, with the seconds of a round, the soonest to a target by the planner's
    own reckoning first."""
    reckoned = []
    for setting in UNIFORM:
        try:
            plan, pace = planned(options, "", [*EVENLY, *fixed(setting, LAYERS)])
        except Failure:
            continue
        trained = sum(importance[weight] for weight in next(iter(plan["silos"].values()))["ranks"])
        progress = HEAD + (1 - HEAD) * trained * setting["r"] / (setting["r"] + HALF_RANK)
        progress *= (setting["s"] / LOCAL_STEPS) ** STEP_POWER
        noise = CRITICAL_BATCH / (setting["b"] * len(plan["silos"]))
        reckoned.append((pace * (1 + noise) / progress, pace, setting))
    reckoned.sort(key=lambda row: row[0])
    return [(setting, pace) for _, pace, setting in reckoned]


def of_different_kinds(fitting, count):
    """The first of every number of steps and lowest layer, as many as asked for."""
    kinds = {}
    for setting, pace in fitting:
        kinds.setdefault((setting["s"], setting["below"]), (setting, pace))
    return list(kinds.values())[:count]


def furthest(tried, count, of_steps):
    """The settings of the highest accuracies, as many as asked for, at most so many of one number of steps."""
    chosen = []
    for accuracy, setting, pace in sorted(tried, key=lambda row: row[0], reverse=True):
        if sum(other["s"] == setting["s"] for other, _ in chosen) < of_steps:
            chosen.append((setting, pace))
    return chosen[:count]


def described(setting, pace):
    where = f"layers {setting['below']} to 5" if setting["below"] else "all layers"
    return f"{setting['f']}, {setting['s']} steps of {setting['b']}, rank {setting['r']}, {where}, rounds of {pace:.2f} s"


def compared(ours, others):
    """Lines that set FedPipe's plan beside the best of other settings, at every target."""
    lines = []
    for target in TARGETS:
        own, times = together(ours, target), [together(row, target) for row in others]
        least = min((seconds for seconds in times if seconds is not None), default=None)
        ratio = shown(least / own if own and least else None, ".2f")
        # The best for this seed, which nobody knows beforehand.
        single = [[seconds for seconds in of_seed if seconds is not None]
                  for of_seed in zip(*(soonest(row, target) for row in others))]
        ratios = [min(times) / own if times and own else None for times, own in zip(single, soonest(ours, target))]
        lines.append(
            f"to {target:.0%} the mean of the seeds takes {shown(own, '.1f')} s, that of the best single setting "
            f"{shown(least, '.1f')} s: {ratio} times; the best one of each seed {', '.join(shown(r, '.2f') for r in ratios)} times, "
            f"{shown(mean(ratios), '.2f')} on average"
        )
    return lines


def uniform(options):
    # One deadline for all: the one that the planner chooses for the first seed.
    plan, _ = planned(options, "FedPipe's plan", [*EVENLY, f"federation.seed={options.seeds[0]}"])
    deadline_s = plan["deadline_s"]
    rows = races(options, {OURS: ("fedpipe", [f"federation.deadline_s={deadline_s}"], RACE_LENGTHS_S)})
    folder = options.runs / f"fedpipe-{LENGTH_S:.0f}s-seed{options.seeds[0]}"
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    importance = next(event["importance"] for event in events if event["event"] == "identified")
    fitting = soonest_settings(options, importance)
    within_deadline = [row for row in fitting if row[1] <= deadline_s]
    print(f"deadline {deadline_s:.2f} s; of {len(UNIFORM)} single settings {len(fitting)} fit every silo's memory, "
          f"{len(within_deadline)} the deadline, too", file=sys.stderr)
    tried = []
    for setting, pace in of_different_kinds(within_deadline, TRIED):
        name, sets = described(setting, pace), fixed(setting, LAYERS)
        points = race(options, slug(name), options.seeds[0], sets, RACE_LENGTHS_S[0])["curve"]
        tried.append((at_the_end(points, RACE_LENGTHS_S[0]) or 0.0, setting, pace))
        print(f"tried {name}: accuracy {tried[-1][0]:.4f}", file=sys.stderr, flush=True)
    settings = {}
    for setting, pace in furthest(tried, RACED, RACED_OF_STEPS):
        name = described(setting, pace)
        settings[name] = (slug(name), fixed(setting, LAYERS), RACE_LENGTHS_S)
    rows |= races(options, settings)
    print(race_table(rows), "", *compared(rows[OURS], [rows[name] for name in settings]), sep="\n")
    names = {described(setting, pace): accuracy for accuracy, setting, pace in tried}
    return {"rows": rows, "deadline_s": deadline_s, "fit_memory": len(fitting), "fit_deadline": len(within_deadline), "tried": names}


def ablation(options):
    rows = races(options, {name: (f"ablation-{slug(name)}", sets, [LENGTH_S]) for name, sets in ABLATIONS.items()})
    print(race_table(rows))
    return {"rows": rows}


def grid(options):
    rows = races(options, {name: (f"grid-{slug(name)}", sets, [LENGTH_S]) for name, sets in GRID.items()})
    print(race_table(rows))
    return {"rows": rows}


def truth(options):
    """One silo that has what it needs, real seconds: virtual time would be the prediction itself."""
    rows = {}
    for name, (workload, setting) in TRUTH.items():
        sets = ["federation.rounds=2", "training.activation_cache=false", "evaluation.every=0", "evaluation.final_examples=1"]
        silos = "silos=[{name='one', memory_mib=16000}]"
        if workload == "e2e":
            if not options.e2e.is_file():
                print(f"SKIPPED: {name} takes {options.e2e} (--e2e FILE)", file=sys.stderr)
                continue
            prefix, config = "model.layers.", "examples/e2e.toml"
            sets += [f"data.train=['{options.e2e}']", f"data.test=['{options.e2e}']", "training.local_steps=8"]
            sets += ["federation.partition={kind='iid'}"]
        else:
            prefix, config = LAYERS, "examples/r8.toml"
            sets += ["training.local_steps=20"]
        sets += [silos, *fixed(setting, prefix)]
        events, summary = run(options, f"truth-{slug(name)}", ROOT / config, sets)
        planned = next(event for event in events if event["event"] == "planned")["silos"]["one"]
        records = [record["silos"][0]["measured"] for record in rounds_of(events)]
        compute = sum(planned["time"][term] for term in ("forward", "backward", "adapter", "fixed"))
        steps = records[-1]["steps"]
        rows[name] = {
            "predicted_mib": sum(planned["memory"].values()) / 2**20,
            "measured_mib": max(record["peak_bytes"] for record in records) / 2**20,
            "predicted_step_ms": 1e3 * compute / steps,
            # The first round warms caches and allocators.
            "measured_step_ms": 1e3 * records[-1]["compute_s"] / steps,
        }
    print("| plan | memory MiB, predicted | measured | off | ms a step, predicted | measured | off |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    off = {"mib": [], "step_ms": []}
    for name, row in rows.items():
        cells = []
        for key, form in (("mib", ".0f"), ("step_ms", ".1f")):
            predicted, measured = row[f"predicted_{key}"], row[f"measured_{key}"]
            off[key].append(predicted / measured - 1)
            cells += [format(predicted, form), format(measured, form), f"{predicted / measured - 1:+.0%}"]
        print(f"| {name} | {' | '.join(cells)} |")
    for key, what in (("mib", "memory"), ("step_ms", "step time")):
        sizes = [abs(share) for share in off[key]]
        print(f"\n{what}: median {statistics.median(sizes):.1%} off, worst {max(sizes):.1%}")
    return {"rows": rows}


def curves(source, target):
    """Accuracy over the run's clock as a picture, the mean of the seeds' latest: the first setting at every length, the others
    at the longest."""
    rows = json.loads(source.read_text(encoding="utf-8"))["rows"]
    lines = []
    for index, (name, row) in enumerate(rows.items()):
        longest = max(row, key=float)
        for length in sorted(row, key=float) if index == 0 else [longest]:
            lines.append((f"{name}, a run of {length} s", row[length], index == 0, length != longest))
    end = max(float(length) for row in rows.values() for length in row)
    width, left, top, right, plot = 760, 56, 16, 16, 320
    height = top + plot + 48 + 18 * len(lines)
    low, high = 0.80, 0.98
    # Told apart by those who do not see all colours, too (Okabe and Ito).
    colours = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#777777"]

    def x(seconds):
        return left + (width - left - right) * seconds / end

    def y(accuracy):
        return top + plot * (high - max(low, min(high, accuracy))) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for step in range(10):
        value = low + 0.02 * step
        parts.append(f'<path d="M{left} {y(value):.1f}H{width - right}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2f}</text>')
    for seconds in range(0, int(end) + 1, 5):
        parts.append(f'<text x="{x(seconds):.1f}" y="{top + plot + 16}" text-anchor="middle">{seconds}</text>')
    parts.append(f'<text x="{(left + width - right) / 2}" y="{top + plot + 32}" text-anchor="middle">seconds on the run’s clock</text>')
    middle = top + plot / 2
    parts.append(f'<text x="12" y="{middle}" transform="rotate(-90 12 {middle})" text-anchor="middle">accuracy</text>')
    colour_of = {}
    for place, (name, runs, first, dashed) in enumerate(lines):
        points = []
        for seconds in range(4, int(end) + 1):
            value = mean([within(run["curve"], seconds) for run in runs])
            last = max(run["curve"][-1][0] for run in runs if run["curve"])
            if value is not None and value >= low and seconds <= last + 1:
                points.append(f"{x(seconds):.1f},{y(value):.1f}")
        colour = colour_of.setdefault(name.rsplit(", a run", 1)[0], colours[len(colour_of) % len(colours)])
        pen = f'stroke="{colour}" stroke-width="{3 if first else 1.5}"' + (' stroke-dasharray="7 4"' if dashed else "")
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" {pen}/>')
        row = top + plot + 56 + 18 * place
        parts.append(f'<path d="M{left} {row - 4}h26" {pen}/>')
        parts.append(f'<text x="{left + 34}" y="{row}">{name.replace("&", "&amp;").replace("<", "&lt;")}</text>')
    parts.append("</svg>\n")
    target.write_text("\n".join(parts), encoding="utf-8")


def commit():
    done = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"], cwd=ROOT,
                          capture_output=True, text=True)
    return done.stdout.strip() or None


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=["truth", "uniform", "ablation", "grid", "curves"])
    parser.add_argument("files", nargs="*", type=Path, help="of curves: the results, and the picture")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 1, 2])
    parser.add_argument("--fedpipe", type=Path, default=ROOT / "target/release/fedpipe")
    parser.add_argument("--e2e", type=Path, default=ROOT / "assets/data/e2e/devset.csv")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/plans", help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results", help="folder of the results")
    return parser.parse_args()


def main():
    options = parse_arguments()
    if options.experiment == "curves":
        if len(options.files) != 2:
            raise Failure("curves takes a file of results and the picture to write")
        curves(*options.files)
        return
    if not options.fedpipe.is_file():
        raise Failure(f"{options.fedpipe} is missing; `cargo build --release -p fedpipe` makes it")
    now = datetime.datetime.now()
    measured_commit = commit()
    results = {"truth": truth, "uniform": uniform, "ablation": ablation, "grid": grid}[options.experiment](options)
    everything = {"format": FORMAT, "date": now.isoformat(timespec="seconds"), "commit": measured_commit, **results}
    path = options.out / f"plans-{options.experiment}-{now:%Y%m%d-%H%M}.json"
    path.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    print(f"\n{path}")


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"plans.py: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)

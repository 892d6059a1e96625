#!/usr/bin/env python3
"""Makes crates/federation/src/plan/golden/{highs,federations}.txt: optima of random plans, one a line, found by HiGHS.

    pip install highspy && scripts/golden_plans.py

highs.txt has 200 programs as the solver gets them. The instances are those of the test in crates/federation/src/plan/exact.rs, made of the same numbers in the same order: one to
three silos, each of which chooses one of one to three variants (a batch, a format and a lowest layer, say) and for every
weight at or above its lowest layer one rank or, where the weight need not train, none, within three budgets; and weights that
so many silos should train. A line is `none` where nothing fits.

federations.txt has 40 federations of 4 to 20 silos, from the model and the profiles on: memory, time and data are worked out
here by the formulas of crates/federation/src/plan/cost.rs. The instances are those of crates/federation/src/plan/tests/federations.rs.
"""

import math
from pathlib import Path

import highspy

FOLDER = Path(__file__).resolve().parent.parent / "crates/federation/src/plan/golden"


class Numbers:
    def __init__(self, seed):
        self.state = seed

    def below(self, bound):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % bound


class Model:
    """A maximisation with binary and non-negative variables."""

    def __init__(self):
        self.highs = highspy.Highs()
        self.highs.silent()
        self.highs.setOptionValue("mip_rel_gap", 0.0)
        self.highs.setOptionValue("mip_abs_gap", 1e-9)
        self.count = 0

    def variable(self, worth, binary):
        self.highs.addVar(0.0, 1.0 if binary else highspy.kHighsInf)
        self.highs.changeColCost(self.count, -worth)
        if binary:
            self.highs.changeColIntegrality(self.count, highspy.HighsVarType.kInteger)
        self.count += 1
        return self.count - 1

    def between(self, low, terms, high):
        """low <= sum of factor * variable <= high"""
        self.highs.addRow(low, high, len(terms), [v for v, _ in terms], [f for _, f in terms])

    def optimum(self):
        self.highs.run()
        if self.highs.getModelStatus() == highspy.HighsModelStatus.kInfeasible:
            return None
        assert self.highs.getModelStatus() == highspy.HighsModelStatus.kOptimal
        return -self.highs.getInfo().objective_function_value


def rank_value(rank):
    return rank / (rank + 1)


def optimum(seed):
    inf, numbers, model = highspy.kHighsInf, Numbers(seed), Model()
    layers = 1 + numbers.below(3)
    ranks = [1, 2, 4][: 1 + numbers.below(3)]
    count = 2 + numbers.below(4)
    layer_of = [layers - 1 - j * layers // count for j in range(count)]
    importance, required = [], []
    for _ in range(count):
        importance.append((1 + numbers.below(99)) / 100)
        required.append(numbers.below(8) == 0)
    highest = min((layer_of[row] for row in range(count) if required[row]), default=layers)
    value_of = [rank_value(rank) for rank in ranks]
    trained = [[] for _ in range(count)]
    for _ in range(1 + numbers.below(3)):
        share = (1 + numbers.below(9)) / 10
        chosen = []
        for _ in range(1 + numbers.below(3)):
            value, lowest = numbers.below(50) / 100, numbers.below(layers + 1)
            room = [numbers.below(100) / 10 for _ in range(3)]
            per_largest = numbers.below(10) / 10 * numbers.below(2)
            units = [[(1 + numbers.below(30)) / 10 for _ in range(3)] for _ in range(2)]
            if lowest > highest:
                continue
            this = model.variable(share * value, True)
            chosen.append(this)
            used, of_layer = [[], [], []], {}
            for row in range(count):
                if layer_of[row] < lowest:
                    continue
                places = []
                for rank, worth in zip(ranks, value_of):
                    place = model.variable(share * importance[row] * worth, True)
                    places.append(place)
                    trained[row].append(place)
                    of_layer.setdefault(layer_of[row], []).append((place, rank))
                    for resource in range(3):
                        used[resource].append((place, units[row % 2][resource] * rank))
                model.between(0 if required[row] else -inf, [*((place, 1) for place in places), (this, -1)], 0)
            largest = model.variable(0, False)
            for terms in of_layer.values():
                model.between(-inf, [*terms, (largest, -1)], 0)
            used[0].append((largest, per_largest))
            for terms, most in zip(used, room):
                model.between(-inf, [*terms, (this, -most)], 0)
        model.between(1, [(this, 1) for this in chosen], 1)
    least = numbers.below(3)
    for row in range(count):
        missing = model.variable(-numbers.below(40) / 100, False)
        model.between(least, [*((place, 1) for place in trained[row]), (missing, 1)], inf)
    return model.optimum()


RANKS = [2, 4, 8]
SERVER_RANK = 8
BATCHES = [2, 4, 8]
PENALTY = {"f32": 0.0, "nf4": 0.03}
BASE_BYTES = {"f32": 400_000, "nf4": 60_000}
INPUT_BYTES = {"f32": 10, "nf4": 5}
STEPS, WIDTH, HEAD, BATCH_VALUE = 5, 4, 8, 0.3
KINDS = ("query", "output")
TENSOR_BYTES, MESSAGE_BYTES = 112, 32


class Silo:
    """A silo's numbers, and what a choice costs it."""

    def __init__(self, numbers, weights, layers, deadline):
        self.examples = 50 + numbers.below(450)
        self.tokens = 100 + numbers.below(1100)
        self.speed = (50 + numbers.below(150)) / 100
        self.memory, self.time = 0.95 * 2**20, 0.9 * deadline
        values = sum(d for _, d in weights)
        names = [f"layer.{layer}.{kind}" for layer in range(layers) for kind in KINDS]
        head = len("classifier.weight") + TENSOR_BYTES
        # Four factors a weight in the task, two in the update.
        self.beside = 6 * sum(len(name) + TENSOR_BYTES for name in names) + 2 * (head + MESSAGE_BYTES)
        extra = numbers.below(100) / 100 * RANKS[-1] * values
        cap = self.beside + WIDTH * (2 * HEAD + SERVER_RANK * values + extra)
        self.data = cap if numbers.below(3) == 0 else math.inf
        self.layers, self.weights = layers, weights

    def used(self, batch, base, again, lowest, ranks):
        """Memory but for the largest layer of recomputation, and time; `ranks` by weight."""
        layers, weights = self.layers, self.weights
        trained = sum(d * ranks.get(m, 0) for m, (_, d) in enumerate(weights))
        applied = sum(d * (SERVER_RANK - ranks.get(m, 0)) for m, (_, d) in enumerate(weights))
        units = sum(ranks.values())
        left = [(layer, SERVER_RANK - ranks.get(m, 0)) for m, (layer, _) in enumerate(weights)]
        tokens, adapted = batch * self.tokens, layers - lowest
        kept = (INPUT_BYTES[base] * adapted + 100 * min(adapted, 1)) if again else 100 * adapted + units
        memory = BASE_BYTES[base] + 4 * (trained + applied + HEAD) + 12 * (trained + HEAD)
        memory += tokens * (kept + 50) + 1000
        steps = STEPS * tokens
        time = steps * layers * 1e-3 + steps * adapted * (2e-3 + again * 1e-3)
        above = sum(rank for layer, rank in left if layer >= lowest)
        time += steps * 1e-4 * ((1 + again / 3) * units + (sum(q for _, q in left) + (1 + again) * above) / 3)
        time = (time + STEPS * 10e-3) / self.speed
        data = self.beside + WIDTH * (2 * (trained + HEAD) + applied)
        return [memory, time + data * 8 / 1e6, data]


def federation(seed):
    inf, numbers, model = highspy.kHighsInf, Numbers(1_000_000 + seed), Model()
    count, layers, least = 4 + numbers.below(17), 2 + numbers.below(2), 2 + numbers.below(2)
    # Layer, and inputs + outputs.
    weights = [(layer, d) for layer in range(layers) for d in (32, 80)]
    scores = [100 * (1 + numbers.below(99)) + m for m in range(len(weights))]
    importance = [score / sum(scores) for score in scores]
    deadline = 200 + numbers.below(800)
    silos = [Silo(numbers, weights, layers, deadline) for _ in range(count)]
    examples = sum(silo.examples for silo in silos)
    trained = [[] for _ in weights]
    for silo in silos:
        share, variants = silo.examples / examples, []
        budgets = [silo.memory, silo.time, silo.data]
        for batch in BATCHES:
            for base in PENALTY:
                for again in (0, 1):
                    for lowest in range(layers + 1):
                        empty = silo.used(batch, base, again, lowest, {})
                        room = [budget - used for budget, used in zip(budgets, empty)]
                        if min(room) < 0:
                            continue
                        value = BATCH_VALUE * math.log2(batch / BATCHES[0]) / math.log2(BATCHES[-1] / BATCHES[0])
                        this = model.variable(share * (value - PENALTY[base]), True)
                        variants.append(this)
                        used, of_layer = [[], [], []], {}
                        for m, (layer, _) in enumerate(weights):
                            if layer < lowest:
                                continue
                            places = []
                            for rank in RANKS:
                                more = silo.used(batch, base, again, lowest, {m: rank})
                                worth = importance[m] * rank_value(rank)
                                place = model.variable(share * worth, True)
                                places.append((place, 1))
                                trained[m].append((place, 1))
                                of_layer.setdefault(layer, []).append((place, rank))
                                for resource in range(3):
                                    used[resource].append((place, more[resource] - empty[resource]))
                            model.between(-inf, [*places, (this, -1)], 0)
                        if again and of_layer:
                            largest = model.variable(0, False)
                            for terms in of_layer.values():
                                model.between(-inf, [*terms, (largest, -1)], 0)
                            used[0].append((largest, batch * silo.tokens))
                        for terms, most in zip(used, room):
                            if terms and most < inf:
                                scale = max(most, 1e-9)
                                model.between(-inf, [*((v, f / scale) for v, f in terms), (this, -most / scale)], 0)
        assert variants, f"silo of federation {seed} has no plan"
        model.between(1, [(this, 1) for this in variants], 1)
    held, least = 0.0, min(least, count)
    for m in sorted(range(len(weights)), key=lambda m: -importance[m]):
        if held >= 0.5:
            break
        held += importance[m]
        missing = model.variable(-importance[m] / least, False)
        model.between(least, [*trained[m], (missing, 1)], inf)
    return model.optimum()


def main():
    FOLDER.mkdir(exist_ok=True)
    for name, optimum_of, count in (("highs", optimum, 200), ("federations", federation, 40)):
        optima = map(optimum_of, range(count))
        text = "".join("none\n" if found is None else f"{found:.9f}\n" for found in optima)
        (FOLDER / f"{name}.txt").write_text(text, encoding="utf-8")
        print(f"wrote {FOLDER / name}.txt")


if __name__ == "__main__":
    main()

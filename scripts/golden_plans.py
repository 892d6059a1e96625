#!/usr/bin/env python3
"""Makes crates/federation/src/plan/golden/highs.txt: the optimum of 200 random plans, one a line, found by HiGHS.

    pip install highspy && scripts/golden_plans.py

The instances are those of the test in crates/federation/src/plan/exact.rs, made of the same numbers in the same order: one to
three silos, each of which chooses one of one to three variants (a batch, a format and a lowest layer, say) and for every
weight at or above its lowest layer one rank or, where the weight need not train, none, within three budgets; and weights that
so many silos should train. A line is `none` where nothing fits.
"""

import math
from pathlib import Path

import highspy

FILE = Path(__file__).resolve().parent.parent / "crates/federation/src/plan/golden/highs.txt"


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
    value_of = [math.log2(1 + rank) / math.log2(1 + ranks[-1]) for rank in ranks]
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


def main():
    FILE.parent.mkdir(exist_ok=True)
    optima = (optimum(seed) for seed in range(200))
    FILE.write_text("".join("none\n" if found is None else f"{found:.9f}\n" for found in optima), encoding="utf-8")
    print(f"wrote {FILE}")


if __name__ == "__main__":
    main()

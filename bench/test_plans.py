"""Tests of the arithmetic of plans.py: `python3 -m unittest discover -s bench`."""

import tempfile
import unittest
import xml.etree.ElementTree
from pathlib import Path

import plans


def finished(number, seconds, accuracy):
    metrics = None if accuracy is None else {"accuracy": accuracy}
    return {"event": "round-finished", "round": number, "seconds": seconds, "metrics": metrics}


class Curves(unittest.TestCase):
    def test_what_came_before_the_first_round_counts(self):
        events = [{"event": "started"}, finished(1, 10.0, 0.5), finished(2, 20.0, 0.7)]
        self.assertEqual(plans.curve(events, {"virtual_seconds": 33.0}), [(13.0, 0.5), (33.0, 0.7)])

    def test_a_round_that_was_done_again_counts_once(self):
        events = [finished(1, 10.0, 0.5), finished(2, 20.0, 0.6), finished(2, 20.0, 0.7)]
        self.assertEqual(plans.curve(events, {"virtual_seconds": 30.0}), [(10.0, 0.5), (30.0, 0.7)])

    def test_a_round_without_a_measurement_takes_its_time(self):
        events = [finished(1, 10.0, None), finished(2, 20.0, 0.7)]
        self.assertEqual(plans.curve(events, {"virtual_seconds": 30.0}), [(30.0, 0.7)])

    def test_a_run_that_was_planned_otherwise_is_not_counted(self):
        events = [{"event": "enrolled"}, {"event": "planned", "silos": {"a": {"batch_size": 8}}}]
        plans.check_planned(events, {"silos": {"a": {"batch_size": 8}}}, "runs/x")
        with self.assertRaisesRegex(plans.Failure, "runs/x was planned from another profile"):
            plans.check_planned(events, {"silos": {"a": {"batch_size": 4}}}, "runs/x")

    def test_the_target_is_reached_when_it_first_is(self):
        points = [(10.0, 0.5), (20.0, 0.97), (30.0, 0.9), (40.0, 0.98)]
        self.assertEqual(plans.time_to(points, 0.96), 20.0)
        self.assertIsNone(plans.time_to(points, 0.99))
        self.assertEqual(plans.within(points, 35.0), 0.9)
        self.assertIsNone(plans.within(points, 5.0))

    def test_the_best_length_of_each_seed_counts(self):
        runs = {
            "50": [{"curve": [(10.0, 0.5), (40.0, 0.95)]}, {"curve": [(10.0, 0.5)]}, {"curve": []}],
            "75": [{"curve": [(60.0, 0.96)]}, {"curve": [(70.0, 0.96)]}, {"curve": [(70.0, 0.9)]}],
        }
        self.assertEqual(plans.soonest(runs, 0.95), [40.0, 70.0, None])

    def test_the_mean_of_the_seeds_gets_there_when_all_have_a_value(self):
        runs = {"50": [{"curve": [(10.0, 0.9), (30.0, 0.98)]}, {"curve": [(20.0, 0.9), (25.0, 0.94)]}]}
        self.assertEqual(plans.together(runs, 0.95), 30.0)
        self.assertEqual(plans.together(runs, 0.9), 20.0)
        self.assertIsNone(plans.together(runs, 0.97))

    def test_one_setting_of_every_kind_is_tried(self):
        fitting = [({"s": 20, "below": 1, "r": 4}, 1.0), ({"s": 20, "below": 1, "r": 8}, 1.1), ({"s": 40, "below": 1, "r": 4}, 2.0),
                   ({"s": 20, "below": 2, "r": 4}, 0.9)]
        self.assertEqual(plans.of_different_kinds(fitting, 2), [fitting[0], fitting[2]])
        self.assertEqual(plans.of_different_kinds(fitting, 9), [fitting[0], fitting[2], fitting[3]])

    def test_the_furthest_are_raced_few_of_one_number_of_steps(self):
        tried = [(0.91, {"s": 40, "below": 1}, 1.0), (0.94, {"s": 40, "below": 2}, 1.0), (0.93, {"s": 40, "below": 3}, 1.0),
                 (0.90, {"s": 20, "below": 1}, 0.5)]
        self.assertEqual(plans.furthest(tried, 3, 2), [(tried[1][1], 1.0), (tried[2][1], 1.0), (tried[3][1], 0.5)])
        self.assertEqual(plans.furthest(tried, 1, 2), [(tried[1][1], 1.0)])

    def test_the_end_is_the_mean_of_three_rounds(self):
        points = [(10.0, 0.1), (20.0, 0.5), (30.0, 0.6), (40.0, 0.7), (60.0, 0.0)]
        self.assertAlmostEqual(plans.at_the_end(points, 50.0), 0.6)
        self.assertIsNone(plans.at_the_end(points, 5.0))

    def test_a_seed_that_never_gets_there_leaves_no_mean(self):
        self.assertEqual(plans.mean([1.0, 3.0]), 2.0)
        self.assertIsNone(plans.mean([1.0, None]))


class Settings(unittest.TestCase):
    def test_a_fixed_setting_leaves_the_planner_one_choice(self):
        everywhere = plans.fixed({"b": 8, "r": 4, "f": "nf4"}, "layer.")
        self.assertIn("plan.always_tune=['*']", everywhere)
        self.assertIn("adapter.ranks=[4]", everywhere)
        above = plans.fixed({"b": 8, "r": 4, "f": "nf4", "below": 2}, "layer.")
        self.assertIn("plan.never_tune=['layer.0.*', 'layer.1.*']", above)

    def test_plans_of_the_truth_differ_in_everything(self):
        settings = [setting for _, setting in plans.TRUTH.values()]
        self.assertGreaterEqual(len(settings), 12)
        for key, least in (("b", 3), ("r", 3), ("f", 5)):
            self.assertGreaterEqual(len({setting[key] for setting in settings}), least, key)


class Pictures(unittest.TestCase):
    def test_curves_are_a_picture_whatever_the_names(self):
        run = {"curve": [(10.0, 0.85), (20.0, 0.95)]}
        row = {"50": [run], "75": [run]}
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "rows.json"), Path(folder, "curves.svg")
            source.write_text(plans.json.dumps({"rows": {"a <b> & c": row}}), encoding="utf-8")
            plans.curves(source, target)
            names = [text.text for text in xml.etree.ElementTree.parse(target).iter("{http://www.w3.org/2000/svg}text")]
        self.assertIn("a <b> & c, a run of 50 s", names)


if __name__ == "__main__":
    unittest.main()

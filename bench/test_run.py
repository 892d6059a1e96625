"""Tests of the driver's arithmetic: `python3 -m unittest discover -s bench`."""

import datetime
import unittest

import run

MINILM = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6}


def figures(tokens_per_s, who="fedpipe", memory=100.0, ordered=False, tokens=(10, 20, 30)):
    return {
        "who": who,
        "sorted": ordered,
        "tokens_per_s": tokens_per_s,
        "step_ms": 1.0,
        "peak_rss_mib": memory,
        "mean_context": 200.0,
        "limit_gflops": 400.0,
        "each_step": [[count, 1.0] for count in tokens],
    }


class Arithmetic(unittest.TestCase):
    def test_a_step_of_minilm_is_what_its_products_add_up_to(self):
        # Every product of a step over one text of 200 tokens, [m, k] x [k, n], written out one by one.
        tokens, rank = 200, 8
        square, up, down = (tokens, 384, 384), (tokens, 384, 1536), (tokens, 1536, 384)
        layer = [square] * 4 + [up, down]
        products = layer * 6 + layer * 5 + [square, up, down]
        heads, width = 12, 32
        products += [(tokens, width, tokens)] * 6 * heads * 3 + [(tokens, tokens, width)] * 6 * heads * 4
        low = [(tokens, 384, rank), (tokens, rank, 384)]
        gradients = [(rank, tokens, 384), (384, tokens, rank)]
        products += (low + low + gradients) * 6 * 4
        expected = sum(2 * m * k * n for m, k, n in products) / tokens
        self.assertEqual(run.flop_per_token(MINILM, rank, 200), expected)
        self.assertAlmostEqual(expected / 1e6, 49, delta=0.5)

    def test_a_step_of_a_llama_is_what_its_products_add_up_to(self):
        tokens, rank = 100, 8
        square, narrow = (tokens, 576, 576), (tokens, 576, 192)
        feed_forward = [(tokens, 576, 1536), (tokens, 576, 1536), (tokens, 1536, 576)]
        layer = [square, narrow, narrow, square, *feed_forward]
        products = layer * 30 + layer * 29 + [square, *feed_forward] + [(tokens, 576, 49152)] * 2
        # Nine heads of 64; of a causal product half counts.
        products += [(tokens, 64, tokens / 2)] * 30 * 9 * 7
        for inputs, outputs in [(576, 576), (576, 192), (576, 192), (576, 576)]:
            products += [(tokens, inputs, rank), (tokens, rank, outputs)] * 3 * 30
        expected = sum(2 * m * k * n for m, k, n in products) / tokens
        self.assertAlmostEqual(run.flop_per_token(run.SMOLLM2, rank, tokens), expected, delta=1)
        self.assertAlmostEqual(expected / 1e6, 545, delta=15)

    def test_a_setting_stands_to_both_peers_and_to_the_limit(self):
        results = {
            "ours": [figures(3000.0, memory=50.0), figures(4000.0, memory=60.0)],
            run.PEFT_AS_RUN: [figures(1000.0, "peft", memory=240.0)],
            "PEFT, quick": [figures(2000.0, "peft", memory=120.0)],
        }
        ours = run.compare(results, MINILM)[0]
        self.assertEqual((ours["speed_over_as_run"], ours["speed_over_fastest"]), (4.0, 2.0))
        self.assertEqual((ours["memory_over_as_run"], ours["memory_over_fastest"]), (0.25, 0.5))
        # 49 MFLOP a token at 4,000 tokens/s are 196 GFLOP/s of 400.
        self.assertAlmostEqual(ours["share_of_limit"], 0.49, delta=0.01)

    def test_a_setting_that_fails_is_a_row_and_no_peer(self):
        failed = {"error": "`python` ended with 1\nno compiler", "limit_gflops": 400.0}
        rows = run.compare({"ours": [figures(3000.0)], "PEFT, compiled": [failed, failed]}, MINILM)
        self.assertIsNone(rows[0]["speed_over_fastest"])
        self.assertIn("| PEFT, compiled | failed: no compiler |", run.table(rows))

    def test_other_batches_are_not_compared(self):
        same = {"a": [figures(1.0)], "b": [figures(2.0)], "c": [figures(3.0, ordered=True, tokens=(5, 5))]}
        run.check_same_work(same)
        with self.assertRaisesRegex(run.Failure, "d and a saw different batches"):
            run.check_same_work({**same, "d": [figures(1.0, tokens=(10, 20, 31))]})

    def test_results_are_named_by_date_and_processor(self):
        name = run.results_name(datetime.datetime(2026, 11, 22, 18, 5), "AMD EPYC 9R14 (x2)")
        self.assertEqual(name, "20261122-1805-amd-epyc-9r14-x2.json")


if __name__ == "__main__":
    unittest.main()

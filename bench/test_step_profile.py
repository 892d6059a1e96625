"""Tests of how a profile is read: `python3 -m unittest discover -s bench`."""

import unittest

import step_profile

REPORT = """
# Overhead  Symbol
     2.00%  [k] clear_page_erms
    11.25%  [.] fedpipe_kernels::gemm::avx512::multiply
     6.04%  [.] fedpipe_kernels::gemm::transpose::avx2::transpose
"""


class Profile(unittest.TestCase):
    def test_a_report_is_read_with_the_largest_first_and_each_symbol_has_one_group(self):
        symbols = step_profile.read_report(REPORT)
        self.assertEqual([share for share, _ in symbols], [11.25, 6.04, 2.0])
        groups = [step_profile.group_of(symbol) for _, symbol in symbols]
        self.assertEqual(groups, ["products", "packing and decoding", "allocation, page faults, memset, memcpy"])
        self.assertEqual(step_profile.group_of("main"), "other")


if __name__ == "__main__":
    unittest.main()

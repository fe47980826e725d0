"""The learning-rate range test: the sweep, the rules that read its curve, `find_lr`, `lr-find` and `--lr auto`.

Read `range_test` first.
"""

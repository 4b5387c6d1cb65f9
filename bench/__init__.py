"""The benchmark: drives CRI endpoints in turn, in one run, and prints ratios (``make bench``).

``endpoints`` starts crinoid and its peer, ``scenarios`` holds what is measured, ``measure`` samples processes,
``report`` prints, stores and draws. A figure counts only beside its peer's of the same run: machines differ, and drift.
"""

"""The benchmark: drives CRI endpoints in turn, in one run, and prints ratios (``make bench``).

``endpoints`` starts crinoid and its peers, ``scenarios`` holds what is measured and ``figures`` what that is called,
``measure`` reads memory and CPU, ``results`` collects; a ``document`` is made of it, and of that alone the tables of
``report`` and the ``plots``. A figure counts only beside its peer's of the same run: machines differ, and drift.
"""

"""What pods and containers use: ``stats`` for the CRI's statistics, ``metrics`` for cAdvisor's, from ``metric_table``.

``writable_layers`` measures disk use for both, and for ImageFsInfo. Reads only; asked by ``cri`` through the daemon.
"""

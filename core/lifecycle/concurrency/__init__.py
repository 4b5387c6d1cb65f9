"""How acts of the lifecycle stand beside each other: per-object locks, requests that share one run, steps in parallel.

Used by every package of the lifecycle; knows none of them.
"""

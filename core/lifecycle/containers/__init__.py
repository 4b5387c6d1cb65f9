"""Containers, from CreateContainer to RemoveContainer: ``containers`` answers ``cri`` and ``pods``.

``builder`` puts one together, ``adjustment`` applies what extensions change, ``log_files`` guards the place of a log,
``stop_signals`` reads signals.
"""

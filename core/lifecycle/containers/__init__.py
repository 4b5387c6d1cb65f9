"""Containers, from CreateContainer to RemoveContainer: ``containers`` answers ``cri`` and ``pods``.

``builder`` puts one together, ``adjustment`` applies what extensions change, ``exit_monitor`` waits for ends,
``log_files`` guards the place of a log, ``stop_signals`` reads signals.
"""

"""Processes and cgroups without a runtime's binary: signals by pidfd, kills by cgroup, freezing, cgroups of execs."""

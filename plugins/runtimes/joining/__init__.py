"""Exec processes without the runtime's binary: a process of crinoid's own joins the container and becomes the command.

A probe each ten seconds in each container is what a busy node spends its processors on, and nearly all of it goes into
starting a monitor and a runtime's binary. Where a container is plain, so that the kernel alone knows all that such a
binary would do, ``joined_execs`` does it instead: it has ``joining_process`` start ``helper``, once for many execs,
which forks a ``child`` for each. What is not plain, and what the child can't join, the binary does as before.

Nothing that ``helper`` and ``child`` import may import asyncio, pydantic or ``re``: each exec is a fork of them.
"""

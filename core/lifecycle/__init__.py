"""What each RPC means: the order of hooks, what each step undoes, and the records. Called by ``cri``, calls ``slots``.

Packages from the top: ``node``, ``pods``, ``containers``, ``strays``, ``checkpoints``, ``sandbox``, ``volumes``,
``spec``, ``images``, ``cdi``, ``stats``, ``events``, ``resources``, ``concurrency``; a package imports only those below
it. Beside them ``streams`` (exec, attach, port-forward), ``queries`` (values that ``cri`` asks and gets) and
``user_ids``.
"""

"""The ``crinoid`` command: every sub-command is a module of its own, imported when it is used."""

"""Slots: stevedore finds a driver, pydantic validates its options, pluggy binds it, a typed facade calls it.

``daemon`` calls :func:`crinoid.core.slots.binding.bind_in_turns` once; ``lifecycle`` calls the facades in the
:class:`Slots` that it returns, whose methods are the hooks of ``core/api/hooks`` one to one.
"""

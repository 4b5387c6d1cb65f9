"""What is on the host or in the database and does not fit together.

``stand_ins`` are shown in place of records that can't be read, so that what they own stays owned; ``strays`` finds what
carries crinoid's marks and has no record, for the start, ``crinoid check`` and ``crinoid doctor``.
"""

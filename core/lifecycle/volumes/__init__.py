"""Volumes that crinoid itself prepares before a container's specification is built.

``declared_volumes`` are those of the image's configuration, ``image_volumes`` show another image's files, and
``staged_volumes`` get mapped owners first. Called by ``containers.builder``; undone through ``resources``.
"""

"""The configuration file: its model, its files, and where each value came from.

``cli`` and ``daemon`` call :func:`crinoid.core.config.loader.load`; every layer from ``slots`` up reads the models.
Nothing here knows which drivers exist: the options of a slot are checked by ``slots``, against the driver's own model.
"""

"""The registry driver ``layout``: images from files in a directory of the node, with no server at all."""

from crinoid.plugins.registries.layout.layout_registry import LayoutRegistry

__all__ = ["LayoutRegistry"]

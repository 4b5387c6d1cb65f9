"""crinoid: a Kubernetes container runtime whose every organ is a plugin."""

__version__ = "0.1.0"

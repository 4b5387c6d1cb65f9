"""crinoid: a Kubernetes container runtime whose every organ is a plugin."""

from crinoid._version import __version__ as __version__  # written by setuptools-scm when it is installed or built

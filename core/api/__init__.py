"""All of the kernel that a plugin may import: hooks, values, errors, configuration base, Linux calls, test kits.

Nothing here knows gRPC, stevedore or the daemon's state, so a driver can be written, type-checked and
tested against this package alone. ``API_VERSION`` is the version of that promise: a driver names the one
it was written for in its ``api_version``, and the kernel refuses another major version at start.
"""

API_VERSION = "1.0"

"""The top of a request's way: bytes from the socket become values, the services are asked, values become bytes.

The only package that imports grpc and protobuf. An RPC method decodes (``decode``), calls one of the services that
``lifecycle`` provides (``services`` names what is asked of them), and encodes (``encode``). What surrounds every call,
such as errors, logs and metrics, is in ``calls``; ``server`` and ``client`` are the two ends of the socket.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # read when grpc is imported: it notes closed connections on stderr

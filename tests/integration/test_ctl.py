"""crinoid ctl against a real daemon, as a person at a node and as a program meet it."""

import asyncio
import json
import os
import pty
import re
import secrets
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from click.testing import CliRunner, Result
from google.protobuf import json_format

from crinoid.core.cli.main import main
from crinoid.core.cri.wire import api_pb2
from integration.conftest import BUSYBOX, Node
from integration.pods import QUICK, until
from support import programs
from support.daemon import Daemon
from support.faults import Answer, fault_registry, manifest_of, send
from support.images import Entry, digest_of, make_layer
from support.patience import patient

LOGS = Path("/var/log/pods")
Ctl = Callable[..., Result]


@pytest.fixture
def ctl(node: Node) -> Ctl:
    """Run a verb in this process; exit codes other than the one that is told fail."""

    def run(*arguments: str | Path, code: int = 0) -> Result:
        result = CliRunner().invoke(main, command_of(node.daemon, *arguments)[3:])
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def name() -> Iterator[str]:
    """A pod's name; its logs must be gone at the end."""
    name = f"ctl-{secrets.token_hex(3)}"
    yield name
    assert list(LOGS.glob(f"*_{name}_*")) == []


def command_of(daemon: Daemon, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "crinoid", "ctl", "-r", f"unix://{daemon.socket}", *map(str, arguments)]


def rows(result: Result) -> list[dict[str, str]]:
    """Read a table; columns are parted by two blanks."""
    titles, *lines = [re.split(r" {2,}", line.rstrip()) for line in result.stdout.splitlines()]
    return [dict(zip(titles, line, strict=True)) for line in lines]


def run_script(ctl: Ctl, name: str, script: str, *flags: str) -> tuple[str, str]:
    """Run a pod on the host's network; return its id and the container's."""
    arguments = ("--image", BUSYBOX, "--name", name, "--network", "host", *flags)
    pod, container = ctl("run", *arguments, "--", "sh", "-c", script).stdout.split()
    return pod, container


def test_a_pod_from_flags_lives_and_leaves_nothing(node: Node, ctl: Ctl, name: str) -> None:
    image, arguments = ("--image", BUSYBOX), ("--label", "made=by-ctl", "--env", "GREETING=hello")
    result = ctl("run", *image, "--name", name, *arguments, "--", "sh", "-c", 'echo "$GREETING"; sleep 99')
    pod, container = result.stdout.split()
    (row,) = rows(ctl("ps"))
    assert row == {
        "CONTAINER": container[:13],
        "IMAGE": row["IMAGE"],
        "CREATED": row["CREATED"],
        "STATE": "Running",
        "NAME": name,
        "ATTEMPT": "0",
        "POD ID": pod[:13],
        "POD": name,
        "NAMESPACE": "default",
        "EXIT": "-",
    }
    assert row["CREATED"].endswith(("just now", "ago"))
    assert ctl("pods", "-q", "--label", "made=by-ctl").stdout.split() == [pod]
    assert until(lambda: ctl("logs", name).stdout) == "hello\n"
    assert ctl("exec", name, "hostname").stdout == f"{name}\n"
    facts = ctl("inspectp", name, "-o", "table").stdout
    assert re.search(r"IP Addresses: 10\.91\.\d+\.\d+\n", facts)
    assert "made: by-ctl" in facts
    assert ctl("rm", name, code=1).stderr == f"crinoid: container {container} runs; stop it first, or use --force\n"
    assert ctl("stop", container[:10]).stdout.split() == [container]
    assert [(row["STATE"], row["EXIT"]) for row in rows(ctl("ps", "-a"))] == [("Exited", "137 Error")]
    assert ctl("wait", name).stdout == "137\n"
    assert f'ContainerStatus {{"container_id": "{container}"}}' in ctl("-D", "wait", name).stderr
    assert ctl("rm", name).stdout.split() == [container]
    assert ctl("rmp", "-f", name).stdout == f"Stopped sandbox {pod}\nRemoved sandbox {pod}\n"
    assert rows(ctl("pods")) == rows(ctl("ps", "-a")) == []


def test_a_pod_from_a_file_is_followed_to_its_end(node: Node, ctl: Ctl, name: str, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("from the host\n")
    app = {
        "name": "app",
        "image": BUSYBOX,
        "command": ["sh", "-c", "cat /data; echo $N; id -u; sleep .3; echo late; exit 7"],
        "env": {"N": 12},
        "user": "alice",
        "mounts": [{"host": str(tmp_path / "data"), "container": "/data", "readonly": True}],
    }
    side = {"name": "side", "image": BUSYBOX, "command": ["sh", "-c", "echo side >&2"]}
    path = tmp_path / "pod.yaml"
    path.write_text(yaml.safe_dump({"name": name, "network": "host", "containers": [app, side]}))
    result = ctl("run", path, "--follow", "--rm", code=7)
    assert result.stdout == "from the host\n12\n1000\nlate\n"
    ids = [line for line in result.stderr.splitlines() if re.fullmatch("[0-9a-f]{64}", line)]
    assert len(ids) == 3, "ids go where they are not in the way"
    assert "side\n" in result.stderr
    assert node.call("ListPodSandbox")["items"] == []


def test_a_directory_of_logs_that_the_user_chose_is_left(node: Node, ctl: Ctl, name: str, tmp_path: Path) -> None:
    path, logs = tmp_path / "pod.yaml", tmp_path / "logs"
    app = {"name": "app", "image": BUSYBOX, "command": ["echo", "x"]}
    form = {"name": name, "network": "host", "log_directory": str(logs), "containers": [app]}
    path.write_text(yaml.safe_dump(form))
    ctl("run", path, "--rm")
    assert (logs / "app/0.log").read_text().endswith(" x\n")


def test_a_run_that_fails_leaves_nothing(node: Node, ctl: Ctl, name: str) -> None:
    flags = ("--image", BUSYBOX, "--name", name, "--network", "host")
    assert "/nonexistent" in ctl("run", *flags, "--", "/nonexistent", code=1).stderr
    assert node.call("ListPodSandbox")["items"] == []
    assert "not on this node" in ctl("run", "--image", "localhost:1/no", "--pull", "never", code=1).stderr


def test_an_interrupted_run_removes_its_pod(node: Node, name: str) -> None:
    flags = ("--image", BUSYBOX, "--name", name, "--network", "host", "--rm")
    command = command_of(node.daemon, "run", *flags, "--", "sleep", "99")
    process = programs.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    pod, _ = process.stderr.readline(), process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(patient(60)) == 130
    assert pod.strip() not in [one["id"] for one in node.call("ListPodSandbox")["items"]]


def test_a_run_that_is_removed_shows_what_it_said(node: Node, ctl: Ctl, name: str) -> None:
    """As `docker run --rm` does: its logs are gone afterwards."""
    flags = ("--rm", "--name", name, "--network", "host", BUSYBOX)
    assert ctl("run", *flags, "--", "sh", "-c", "echo hello; exit 7", code=7).stdout == "hello\n"
    assert node.call("ListPodSandbox")["items"] == []


def test_dashes_before_a_command_are_kubectl_s(ctl: Ctl, name: str) -> None:
    pod, container = run_script(ctl, name, "sleep 99")
    for how in ("-s", "-i"):
        assert ctl("exec", how, container, "--", "echo", "--", "x").stdout == "-- x\n"
    ctl("rmp", "-f", pod)


def test_a_command_gives_its_output_and_exit_code(node: Node, ctl: Ctl, name: str) -> None:
    pod, container = run_script(ctl, name, "sleep 99")
    result = ctl("exec", "-s", container, "sh", "-c", "printf 'a\\377b'; echo wrong >&2; exit 3", code=3)
    assert (result.stdout_bytes, result.stderr) == (b"a\xffb", "wrong\n")
    assert ctl("exec", "-e", name, "false").stdout == ""
    assert ctl("exec", "--name", f"^{name}$", "-q", "echo", "-n", "x").stdout == "x"
    assert "had not ended after 1 s" in ctl("exec", "--timeout", "1", name, "sleep", "9", code=1).stderr
    assert "no container 'nobody'" in ctl("exec", "nobody", "true", code=1).stderr
    ctl("rmp", "-f", pod)


def test_logs_are_followed_across_a_rotation_until_the_end(node: Node, ctl: Ctl, name: str) -> None:
    lines = "while [ $i -lt $end ]; do echo line $i; i=$((i+1)); sleep .01; done"
    wait = "until [ -e /rotated ]; do sleep .01; done"
    script = f"i=0; end=20; {lines}; {wait}; end=40; {lines}; printf unfinished"
    pod, container = run_script(ctl, name, script)
    command = command_of(node.daemon, "logs", "-f", container)
    with programs.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        log = Path(node.status(container)["log_path"])
        log.rename(log.with_name("0.log.1"))
        assert ctl("logs", "-r", "--tail", "0", name).stdout == ""
        node.execute(container, "touch", "/rotated")
        rest = process.stdout.read()
    assert process.returncode == 0
    assert first + rest == "".join(f"line {number}\n" for number in range(40)) + "unfinished"
    last = ctl("logs", "--tail", "2", "-t", name).stdout.splitlines()
    assert [line.split(" ", 1)[1] for line in last] == ["line 39", "unfinished"]
    assert "no attempt before" in ctl("logs", "-p", name, code=1).stderr
    ctl("rm", name)
    assert list(log.parent.iterdir()) == [], "the log and its rotation go with the container"
    ctl("rmp", "-f", pod)


def test_following_ends_at_an_interrupt(node: Node, ctl: Ctl, name: str) -> None:
    pod, container = run_script(ctl, name, "echo begun; sleep 99")
    command = command_of(node.daemon, "logs", "-f", container)
    process = programs.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=patient(20)) == ("", "")
    assert process.returncode == 130
    ctl("rmp", "-f", pod)


@pytest.mark.parametrize(
    ("arguments", "rpc", "request_fields", "field"),
    [
        (["ps", "-a"], "ListContainers", {}, "containers"),
        (["pods"], "ListPodSandbox", {}, "items"),
        (["images"], "ListImages", {}, "images"),
        (["stats"], "ListContainerStats", {}, "stats"),
        (["statsp"], "ListPodSandboxStats", {}, "stats"),
    ],
)
def test_documents_are_those_of_protobuf(
    node: Node, ctl: Ctl, arguments: list[str], rpc: str, request_fields: dict[str, Any], field: str
) -> None:
    pod = node.run_pod(handler=QUICK["runc"], labels={"with_underscore": "x"})
    node.run_container(pod, "sleep", "99")
    document = json.loads(ctl(*arguments, "-o", "json").stdout)
    answer = getattr(api_pb2, f"{rpc}Response").FromString(node.daemon.cri.raw(rpc, b""))
    expected = json_format.MessageToDict(answer, always_print_fields_with_no_presence=True)
    assert shape(document) == shape(expected)
    assert shape(yaml.safe_load(ctl(*arguments, "-o", "yaml").stdout)) == shape(expected)
    assert len(document[field]) == 1 or field == "images"


def shape(value: Any) -> Any:
    """Leave names and types of a document, as readings differ from look to look; lists count as sets."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return sorted({json.dumps(shape(item), sort_keys=True) for item in value})
    return type(value).__name__


def test_a_status_document_is_crictls(node: Node, ctl: Ctl) -> None:
    pod = node.run_pod(handler=QUICK["runc"])
    container = node.run_container(pod, "sh", "-c", "exit 5")
    node.wait_exit(container)
    document = json.loads(ctl("inspect", container).stdout)
    assert document["status"]["exitCode"] == 5
    assert document["status"]["finishedAt"] >= document["status"]["startedAt"] > "2020-01-01T"
    assert document["info"]["sandboxID"] == pod
    assert "info" not in json.loads(ctl("inspect", "-q", container).stdout)
    assert len(json.loads(ctl("inspect", container, container).stdout)) == 2
    assert json.loads(ctl("inspectp", pod).stdout)["status"]["id"] == pod
    assert BUSYBOX in json.loads(ctl("inspecti", BUSYBOX).stdout)["status"]["repoTags"]
    assert "Exit Code: 5\n" in ctl("inspect", container, "-o", "table").stdout
    assert "no container fits" in ctl("inspect", "--name", "nobody", code=1).stderr


def test_lists_are_filtered_and_newest_first(node: Node, ctl: Ctl) -> None:
    first, second = (
        node.run_pod(name, QUICK["runc"], labels={"number": name}, metadata=metadata(name)) for name in ("one", "two")
    )
    old = node.run_container(first, "sleep", "99", name="app", labels={"tier": "a"})
    new = node.run_container(second, "sleep", "99", name="app-two")
    created = node.create(second, "true", name="idle")

    def ids(*arguments: str) -> list[str]:
        return ctl(*arguments, "-q").stdout.split()

    assert ids("ps") == [new, old]
    assert ids("ps", "-a") == [created, new, old]
    assert ids("ps", "--state", "created") == [created]
    assert ids("ps", "--latest") == [created]
    assert ids("ps", "--last", "2") == [created, new]
    assert ids("ps", "--name", "^app$") == [old]
    assert ids("ps", "--label", "tier=a") == [old]
    assert ids("ps", "--pod", "two") == ids("ps", "--pod", second[:12]) == [new]
    assert ids("ps", "--namespace", "^space-one$") == [old]
    assert ids("ps", "--image", BUSYBOX) == [new, old]
    assert ids("ps", "--image", "nobody") == ids("ps", "--pod", "nobody") == []
    assert ids("pods") == [second, first]
    assert ids("pods", "--name", "on", "--state", "ready", "--label", "number=one") == [first]
    assert ids("pods", "--state", "notready") == []
    assert "must be one of created, running" in ctl("ps", "--state", "stopped", code=1).stderr
    assert ctl("exec", "app", "echo", "x").stdout == "x\n"
    assert ctl("stop", "-a").stdout.split() == [new, old]
    assert set(ctl("rm", "-a").stdout.split()) == {old, new, created}


def metadata(name: str) -> dict[str, Any]:
    return {"name": name, "namespace": f"space-{name}", "uid": f"uid-{name}", "attempt": 0}


def test_crictls_files_and_verbs_work(node: Node, ctl: Ctl, tmp_path: Path) -> None:
    pod_file, container_file = tmp_path / "pod.json", tmp_path / "container.yaml"
    options = {"network": 2, "pid": 1}
    linux = {"security_context": {"namespace_options": options}}
    pod_config = {"metadata": {"name": "p", "namespace": "n"}, "log_directory": str(tmp_path), "linux": linux}
    pod_file.write_text(json.dumps(pod_config, indent="\t"))
    container: dict[str, Any] = {"metadata": {"name": "c"}, "image": {"image": BUSYBOX}, "log_path": "c.log"}
    container |= {"command": ["sh", "-c", "echo $WORD; sleep 99"], "envs": [{"key": "WORD", "value": "plain"}]}
    container_file.write_text(yaml.safe_dump(container | {"linux": linux}))
    pod = ctl("runp", pod_file).stdout.strip()
    made = ctl("create", "p", container_file, pod_file).stdout.strip()
    assert ctl("start", made).stdout.strip() == made
    assert until(lambda: ctl("logs", made).stdout) == "plain\n"
    assert ctl("update", "--memory", str(64 << 20), "c").stdout.strip() == made
    assert node.status(made)["resources"]["linux"]["memory_limit_in_bytes"] == str(64 << 20)
    assert ctl("stopp", "p").stdout == f"Stopped sandbox {pod}\n"
    assert ctl("rmp", "p", "nobody", code=1).stdout == f"Removed sandbox {pod}\n"
    both = ctl("run", "--no-pull", container_file, pod_file).stdout.split()
    assert both == ctl("ps", "-q").stdout.split(), "crictl prints the container's id alone"
    container_file.write_text(yaml.safe_dump(container | {"comand": []}))
    assert 'no field named "comand"' in ctl("create", "p", container_file, pod_file, code=1).stderr


def test_use_is_measured(node: Node, ctl: Ctl) -> None:
    pod = node.run_pod(handler=QUICK["runc"])
    container = node.run_container(pod, "sh", "-c", "while true; do true; done")
    (row,) = rows(ctl("stats", "-s", "300ms"))
    assert (row["CONTAINER"], row["NAME"]) == (container[:13], "app")
    assert 5 < float(row["CPU %"]) < 150
    assert row["MEM"] != "0B"
    (row,) = rows(ctl("statsp", "-s", "300ms", "pod"))
    assert (row["POD"], row["POD ID"]) == ("pod", pod[:13])
    assert 5 < float(row["CPU %"]) < 150


def test_images_are_listed_and_removed(node: Node, ctl: Ctl) -> None:
    other = "docker.io/test/two:1"
    image_id = ctl("pull", other).stdout.removeprefix("Image is up to date for ").strip()
    (row,) = rows(ctl("images", "--digests", "--pinned", other))
    assert (row["IMAGE"], row["TAG"], row["PINNED"]) == ("docker.io/test/two", "1", "false")
    assert image_id.removeprefix("sha256:").startswith(row["IMAGE ID"])
    assert ctl("images", "-q", "--filter", "reference=test/two").stdout.split() == [image_id]
    for name in ("docker.io/test/two", "test/two"):
        assert [row["TAG"] for row in rows(ctl("images", name))] == ["1"], "a repository means all its tags"
    assert rows(ctl("images", image_id)) != []
    assert "must begin with one of" in ctl("images", "--filter", "colour=red", code=1).stderr
    pod = node.run_pod(handler=QUICK["runc"])
    node.create(pod, "true")
    assert f"Deleted: {other}\n" in ctl("rmi", "--prune").stdout
    assert rows(ctl("images", BUSYBOX)) != [], "an image in use is not pruned"
    assert "there is no image" in ctl("rmi", other, code=1).stderr
    assert json.loads(ctl("imagefsinfo").stdout)["status"]["imageFilesystems"][0]["fsId"]["mountpoint"]


def test_a_report_tells_of_pods_without_their_secrets(node: Node, ctl: Ctl, name: str, tmp_path: Path) -> None:
    run_script(ctl, name, "sleep 99", "--env", "KEY=hunter2-environment")
    pod = node.run_pod("annotated", annotations={"vault": "hunter2-annotation"}, labels={"team": "hunter2-label"})
    file = tmp_path / "report.tar.gz"
    options = ("-c", str(node.daemon.config_file), "-o", str(file), "--log", str(node.daemon.log))
    result = CliRunner().invoke(main, ["report", *options])
    assert result.exit_code == 0, result.output
    with tarfile.open(file) as archive:
        members = {member.name.rpartition("/")[2]: archive.extractfile(member) for member in archive}
        texts = {part: content.read().decode() for part, content in members.items() if content}
    assert [part for part, text in texts.items() if "hunter2" in text] == []
    assert pod in {one["id"] for one in json.loads(texts["objects.json"])["pods"]}
    assert json.loads(texts["status.json"])["info"]["deferred"] == []
    assert any(entry["owner"] == pod for entry in json.loads(texts["ledger.json"])["ledger"])
    assert pod in texts["log.txt"]
    assert pod in texts["timelines.jsonl"]
    ctl("rmp", "--all", "--force")


def test_the_node_tells_of_itself(node: Node, ctl: Ctl) -> None:
    assert ctl("version").stdout.splitlines()[1] == "RuntimeName:  crinoid"
    document = json.loads(ctl("info").stdout)
    assert {one["type"]: one["status"] for one in document["status"]["conditions"]} == {
        "RuntimeReady": True,
        "NetworkReady": True,
    }
    assert {slot["role"] for slot in document["slots"]} >= {"runtime", "network", "snapshotter", "registry"}
    assert "slots" not in json.loads(ctl("info", "-q").stdout)
    assert "RuntimeReady  true" in ctl("status").stdout
    assert ctl("runtime-config").stdout == "cgroup driver:   CGROUPFS\n"


@pytest.fixture(scope="module")
def slow_image() -> Iterator[str]:
    """An image whose layers take about a second to arrive."""
    layers = [make_layer([Entry(path=f"file{number}", content=os.urandom(1 << 18))]) for number in range(2)]
    rootfs = {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]}
    config = json.dumps({"os": "linux", "architecture": "amd64", "config": {}, "rootfs": rootfs}).encode()
    manifest = manifest_of(config, *layers)
    started, ended = threading.Event(), threading.Event()
    hosts: list[str] = []

    async def serve() -> None:
        async with fault_registry() as registry:
            for selector in ("1", digest_of(manifest)):
                registry.on_manifest(selector, send(manifest))
            registry.on_blob(digest_of(config), send(config))
            for layer in layers:
                registry.on_blob(digest_of(layer), drip(layer))
            hosts.append(registry.host)
            started.set()
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(patient(60))
    yield f"{hosts[0]}/app:1"
    ended.set()
    thread.join(10)


def drip(content: bytes) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = len(content)
        await response.prepare(request)
        for start in range(0, len(content), 1 << 15):
            await response.write(content[start : start + (1 << 15)])
            await asyncio.sleep(0.1)
        return response

    return answer


@pytest.fixture(scope="module")
def slow_daemon(slow_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    host = slow_image.partition("/")[0]
    config = f"[network]\ndriver = 'host'\n[registries.distribution.options]\nplain_http = ['{host}']\n"
    daemon = Daemon(tmp_path_factory.mktemp("slow"), config)
    daemon.start()
    yield daemon
    daemon.clean()
    daemon.end()


def test_a_pull_shows_its_layers_as_lines(slow_daemon: Daemon, slow_image: str) -> None:
    pull = command_of(slow_daemon, "pull", slow_image)
    finished = programs.run(pull, capture_output=True, text=True, timeout=patient(60))
    assert finished.stdout.startswith("Image is up to date for sha256:"), finished.stderr
    first, *steps, last = finished.stderr.splitlines()
    assert (first, last.rpartition(" in ")[0]) == (f"pulling {slow_image}", f"pulled {slow_image}")
    assert len([step for step in steps if step.endswith(": pulling")]) == 2, steps


def test_a_pull_shows_bars_on_a_terminal(slow_daemon: Daemon, slow_image: str) -> None:
    remove = command_of(slow_daemon, "rmi", "-a")
    removed = programs.run(remove, capture_output=True, text=True, timeout=patient(60))
    assert removed.stdout == f"Deleted: {slow_image}\n"
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    command = command_of(slow_daemon, "pull", slow_image)
    process = programs.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment, text=True)
    os.close(theirs)
    shown = read_all(ours)
    output, _ = process.communicate(timeout=patient(60))
    assert (process.returncode, output[:24]) == (0, "Image is up to date for ")
    for words in ("0 of 2 layers done", "pulling", "━", "done"):
        assert words in shown


def read_all(descriptor: int) -> str:
    """Read a terminal to its end, which Linux tells as an error."""
    data, deadline = b"", time.monotonic() + patient(60)
    while time.monotonic() < deadline:
        try:
            piece = os.read(descriptor, 1 << 16)
        except OSError:
            break
        data += piece
    os.close(descriptor)
    return data.decode(errors="replace")

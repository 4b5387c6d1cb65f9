"""What a restart over many pods costs: their states are read from files, so that no program is run before the lists."""

from pathlib import Path

from integration.own_nodes import own_node

PODS = 12
NOTE_PROGRAMS = """
import sys
PROGRAMS = {{"os.posix_spawn", "os.fork", "os.forkpty", "os.exec", "os.system", "subprocess.Popen"}}
def note(event, arguments):
    if event in PROGRAMS:
        with open({path!r}, "a") as file:
            file.write(f"{{event}} {{arguments!r}}\\n")
sys.addaudithook(note)
"""
BRIDGE = "[networks.bridge]\ndriver = 'bridge'\noptions = { subnets = ['10.93.0.0/24'] }\n"


def test_no_program_is_run_before_the_lists_are_answered(tmp_path: Path) -> None:
    notes = tmp_path / "programs"
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(NOTE_PROGRAMS.format(path=str(notes)))
    config = BRIDGE + "[runtimes.runc-bridge]\ndriver = 'runc'\nnetwork = 'bridge'\n"
    with own_node(tmp_path / "node", config) as node:
        handlers = [("", "crun", "runc-bridge")[number % 3] for number in range(PODS)]
        pods = [node.run_pod(f"pod{number}", handler) for number, handler in enumerate(handlers)]
        containers = {node.run_container(pod, "sleep", "1000") for pod in pods}
        node.daemon.stop()
        node.daemon.prefix = (*node.daemon.prefix, "env", f"PYTHONPATH={tmp_path / 'site'}")
        node.daemon.start()
        listed = {one["id"]: one["state"] for one in node.call("ListContainers")["containers"]}
        assert listed == dict.fromkeys(containers, "CONTAINER_RUNNING")
        assert {one["state"] for one in node.call("ListPodSandbox")["items"]} == {"SANDBOX_READY"}
        assert not notes.exists(), notes.read_text()
        node.execute(next(iter(containers)), "true")
        assert "posix_spawn" in notes.read_text(), "the notes are taken"

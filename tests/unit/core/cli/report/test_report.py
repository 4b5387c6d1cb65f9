"""A report tells what a node is like, and none of its secrets, wherever they were planted."""

import base64
import json
import os
import sqlite3
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from crinoid.core.cli.main import main
from crinoid.core.daemon.redaction import Secrets

SECRETS = {
    "environment of this process": "hunter2-environment",
    "a proxy's password": "hunter2-proxy",
    "default_env of pods": "hunter2-default-env",
    "a docker config's auth": "hunter2-docker-auth",
    "a docker config's password": 'hunter2 "docker" pass\\word',
    "a docker config's identity token": "hunter2-identity-token",
    "a header of hosts.toml": "hunter2-hosts-header",
    "a pod's annotation": "hunter2-annotation",
    "a container's environment": "hunter2-container-env",
    "a container's argument": "hunter2-argument",
    "an inner value of the ledger": "hunter2-ledger-annotation",
    "a record in quarantine": "hunter2-quarantine",
    "a token in the log": "hunter2.log.token",
    "a query in the log": "hunter2-signature",
}
LOG = """\
pulling from https://user:hunter2-log-userinfo@registry.example/v2/
GET https://blobs.example/x?X-Amz-Signature=hunter2-signature&a=b failed
Authorization: Bearer hunter2.log.token
env of pod is hunter2-container-env and hunter2-annotation, header hunter2-hosts-header
the deadline token_ttl_s = 60.0 is told
"""


def plant(directory: Path) -> Path:
    """Write a node's files with a secret in each place; return the configuration."""
    auth = base64.b64encode(b"user:hunter2-docker-auth").decode()
    entries = {
        "one": {"auth": auth},
        "two": {"username": "user", "password": SECRETS["a docker config's password"]},
        "three": {"identitytoken": "hunter2-identity-token"},
    }
    (directory / "docker.json").write_text(json.dumps({"auths": entries}))
    hosts = directory / "certs.d/registry.example"
    hosts.mkdir(parents=True)
    (hosts / "hosts.toml").write_text('[host."https://m.example".header]\nX-Token = ["hunter2-hosts-header"]\n')
    root = directory / "root"
    root.mkdir()
    with sqlite3.connect(root / "state.db") as database:
        for table in ("pods", "containers", "images", "settings"):
            database.execute(f"CREATE TABLE {table} (id TEXT, body TEXT)")
        database.execute("CREATE TABLE ledger (id INTEGER, owner TEXT, kind TEXT, key TEXT, data TEXT)")
        database.execute("CREATE TABLE quarantine (source TEXT, id TEXT, body TEXT, error TEXT, at_ns INTEGER)")
        pod = {"config": {"annotations": {"vault": "hunter2-annotation"}}}
        container = {"env": [["KEY", "hunter2-container-env"]], "args": ["app", "--password=hunter2-argument"]}
        database.execute("INSERT INTO pods VALUES ('p', ?)", (json.dumps(pod),))
        database.execute("INSERT INTO containers VALUES ('c', ?)", (json.dumps(container),))
        request = json.dumps({"annotations": {"a": "hunter2-ledger-annotation"}})
        database.execute("INSERT INTO ledger VALUES (1, 'p', 'network', 'hunter2-ledger-annotation', ?)", (request,))
        broken = '{"annotations": "hunter2-quarantine'
        error = "can't read hunter2-quarantine"
        database.execute("INSERT INTO quarantine VALUES ('pods', 'q', ?, ?, 0)", (broken + '"', error))
    database.close()
    (directory / "daemon.log").write_text(LOG)
    config = directory / "config.toml"
    config.write_text(
        f"root = '{root}'\nrun = '{directory}/run'\n[server]\nsocket = '{directory}/nobody.sock'\n"
        "[pods]\ndefault_env = { KEY = 'hunter2-default-env' }\n"
        "[tracing]\nendpoint = 'http://user:hunter2-tracing@127.0.0.1:4317'\n"
        "[registries.distribution]\ndriver = 'distribution'\n"
        f"options = {{ docker_configs = ['{directory}/docker.json'], config_paths = ['{directory}/certs.d'] }}\n"
    )
    return config


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The texts of a report on a node with secrets everywhere, by their files' names."""
    monkeypatch.setenv("REGISTRY_PASSWORD", SECRETS["environment of this process"])
    monkeypatch.setenv("HTTPS_PROXY", "http://user:hunter2-proxy@proxy.example:3128")
    config, file = plant(tmp_path), tmp_path / "report.tar.gz"
    command = ["report", "-c", str(config), "--log", str(tmp_path / "daemon.log"), "-o", str(file)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "look through it before you send it" in result.output
    assert file.stat().st_mode & 0o777 == 0o600
    with tarfile.open(file) as archive:
        members = {member.name.rpartition("/")[2]: archive.extractfile(member) for member in archive}
        return {name: content.read().decode() for name, content in members.items() if content}


def test_no_secret_is_in_it_wherever_it_was(texts: dict[str, str]) -> None:
    assert [(name, line) for name, text in texts.items() for line in text.splitlines() if "hunter2" in line] == []
    assert texts["log.txt"].count("(redacted)") >= 5


def test_what_helps_is_in_it(texts: dict[str, str]) -> None:
    assert set(texts) == {
        "README.txt", "check.json", "configuration.json", "versions.json", "status.json", "objects.json", "ledger.json",
        "host.json", "log.txt", "timelines.jsonl",
    }  # fmt: skip
    configuration = json.loads(texts["configuration.json"])
    assert configuration["origins"]["server.socket"].endswith("config.toml:4")
    assert configuration["values"]["streaming"]["token_ttl_s"] == 60.0
    assert configuration["values"]["registries"]["distribution"]["options"]["tries"] == 5
    assert configuration["values"]["pods"]["default_env"] == {"KEY": "(redacted)"}
    assert [Path(file).name for file in list(configuration.values())[-1]] == ["docker.json", "hosts.toml"]
    assert json.loads(texts["ledger.json"])["ledger"] == [
        {"id": 1, "owner": "p", "kind": "network", "key": "(redacted)"}
    ]
    assert "there is no socket at" in json.loads(texts["status.json"])["not available"]
    assert "the deadline token_ttl_s = 60.0 is told" in texts["log.txt"]
    assert json.loads(texts["host.json"])["kernel"] == os.uname().release
    assert any(finding["area"] == "kernel" for finding in json.loads(texts["check.json"]))


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    config, file = plant(tmp_path), tmp_path / "kept"
    file.write_text("kept")
    result = CliRunner().invoke(main, ["report", "-c", str(config), "-o", str(file)])
    assert (result.exit_code, file.read_text()) == (1, "kept")
    assert "File exists" in result.stderr


@pytest.mark.parametrize(
    "text",
    [
        'password = "s3cr3tvalue"',
        '{"identitytoken": "s3cr3tvalue"}',
        "docker login -u me --password=s3cr3tvalue",
        "Authorization: Basic s3cr3tvalue",
        "https://me:s3cr3tvalue@host/",
        "https://host/x?sig=s3cr3tvalue",
        "-----BEGIN RSA PRIVATE KEY-----\ns3cr3tvalue\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\ns3cr3tvalue and the rest is cut off",
        "eyJhbGciOi.s3cr3tvalue.c2ln",
        "API_KEY: s3cr3tvalue",
        "cookie: s3cr3tvalue",
    ],
)
def test_what_looks_like_a_secret_is_taken_for_one(text: str) -> None:
    assert "s3cr3tvalue" not in Secrets().scrub(text)


def test_what_is_no_secret_stays() -> None:
    text = "token_ttl_s: 60.0 /run/secrets is a path; https://host/v2/ 401; sha256:abc; secret = true, key = 5"
    assert Secrets().scrub(text) == text

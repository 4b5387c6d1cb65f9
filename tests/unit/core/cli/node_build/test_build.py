"""crinoid build: the lock, the tree, the archives, the bill of materials, and verify, with small wheels made here."""

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.cli.main import main
from crinoid.core.cli.node_build import tree
from crinoid.core.cli.node_build.archives import write_tar
from crinoid.core.cli.node_build.site_file import Site, read_site

MAIN = "import sys, tiny_dep\nprint(sys.prefix, tiny_dep.VERSION, *sys.argv[1:])\n"
PREFIX = "/opt/edge"
SITE = f"""\
name = "edge-node"
version = "1.0"
prefix = "{PREFIX}"
maintainer = "Edge <edge@example.com>"
groups = ["crinoid"]
users = ["edge"]
certs = "certs"
[crinoid]
version = ">=1"
[plugins]
tiny_plugin = "<2"
[wheels]
directory = "wheels"
[unit]
environment = {{ HTTPS_PROXY = "http://proxy.example:3128/%20" }}
[files."/etc/edge.conf"]
source = "edge.conf"
mode = "0640"
"""


def make_wheel(directory: Path, name: str, version: str, files: dict[str, str], metadata: str = "") -> Path:
    """Write a wheel as the binary distribution format has it."""
    info = f"{name}-{version}.dist-info"
    all_files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{metadata}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}.__main__:main\n",
    }
    record = "".join(f"{file},,\n" for file in [*all_files, f"{info}/RECORD"])
    path = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in {**all_files, f"{info}/RECORD": record}.items():
            archive.writestr(zipfile.ZipInfo(file), content)
    return path


def make_site(directory: Path, text: str = SITE) -> Path:
    wheels = directory / "wheels"
    (directory / "certs/a.example").mkdir(parents=True)
    wheels.mkdir()
    (directory / "certs/a.example/client.key").write_text("a key")
    (directory / "edge.conf").write_text("edge")
    licence = {"crinoid-1.5.dist-info/licenses/LICENSE": "the licence's text"}
    needs = "License-Expression: Apache-2.0\nRequires-Dist: tiny-dep>=1\nRequires-Dist: pytest; extra == 'dev'\n"
    make_wheel(wheels, "crinoid", "1.5", {"crinoid/__init__.py": "", "crinoid/__main__.py": MAIN, **licence}, needs)
    old = "Classifier: License :: OSI Approved :: MIT License\n"
    make_wheel(wheels, "tiny_dep", "2.0", {"tiny_dep/__init__.py": "VERSION = 2\n"}, old)
    make_wheel(wheels, "tiny_plugin", "1.0", {"tiny_plugin/__init__.py": ""})
    make_wheel(wheels, "tiny_plugin", "2.0", {"tiny_plugin/__init__.py": ""})
    file = directory / "site.toml"
    file.write_text(text)
    return file


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["build", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


@dataclass
class Built:
    """A site's directory, and what was made of it."""

    directory: Path

    def output(self, kind: str) -> bytes:
        return (self.directory / f"dist/edge-node_1.0_amd64.{kind}").read_bytes()

    def tree(self) -> tarfile.TarFile:
        return tarfile.open(fileobj=io.BytesIO(self.output("tar.gz")))

    def sbom(self) -> dict[str, object]:
        return dict(json.loads(self.output("cdx.json")))

    def control(self) -> dict[str, str]:
        members = self.output("deb")[8:]
        size = int(members[48:58])
        rest = members[60 + size + size % 2 :]
        assert rest[:16].strip() == b"control.tar.gz"
        found = {}
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(rest[60 : 60 + int(rest[48:58])]))) as archive:
            for member in archive.getmembers():
                if (file := archive.extractfile(member)) is not None:
                    found[member.name.removeprefix("./")] = file.read().decode()
        return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    directory = tmp_path_factory.mktemp("site")
    run(make_site(directory), "--output", directory / "dist")
    return Built(directory)


@pytest.fixture
def node(built: Built, tmp_path: Path) -> Path:
    """The root of a node with the build on it."""
    built.tree().extractall(tmp_path / "node", filter="fully_trusted")
    return tmp_path / "node"


def test_equal_input_gives_equal_bytes(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "elsewhere"
    file = make_site(directory)
    for path in (directory / "wheels").iterdir():
        os.utime(path, (1, 1))
    shutil.copy(built.directory / "site.lock", directory)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    before = os.umask(0o077)
    try:
        run(file, "--output", directory / "dist")
    finally:
        os.umask(before)
    for kind in ("deb", "tar.gz", "cdx.json", "build.json"):
        assert Built(directory).output(kind) == built.output(kind), kind


def test_the_lock_names_each_wheel_by_its_hash(built: Built) -> None:
    lines = (built.directory / "site.lock").read_text().splitlines()
    assert lines[0].startswith("# Made by crinoid build for: crinoid>=1, tiny_plugin<2, Python 3.")
    wheel = (built.directory / "wheels/crinoid-1.5-py3-none-any.whl").read_bytes()
    assert lines[1] == f"crinoid==1.5 --hash=sha256:{hashlib.sha256(wheel).hexdigest()}"
    assert [line.split(" ")[0] for line in lines[2:]] == ["tiny-dep==2.0", "tiny-plugin==1.0"]


@pytest.mark.parametrize("way", ["environment", "requirement", "file"])
def test_a_site_s_directory_is_all_whatever_the_builder_s_pip_is_told(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    more = tmp_path / "more"
    more.mkdir()
    make_wheel(more, "tiny_dep", "3.0", {"tiny_dep/__init__.py": "VERSION = 3\n"})
    (tmp_path / "pins").write_text("tiny_plugin<1\n")
    if way == "environment":
        monkeypatch.setenv("PIP_FIND_LINKS", str(more))
        monkeypatch.setenv("PIP_CONSTRAINT", str(tmp_path / "pins"))
    elif way == "requirement":
        monkeypatch.setenv("PIP_REQUIREMENT", str(tmp_path / "pins"))
    else:
        (tmp_path / "pip.conf").write_text(f"[global]\nfind-links = {more}\nconstraint = {tmp_path}/pins\n")
        monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    directory = tmp_path / "site"
    run(make_site(directory), "--output", directory / "dist")
    assert (directory / "site.lock").read_text() == (built.directory / "site.lock").read_text()
    assert Built(directory).output("deb") == built.output("deb")


def test_what_is_not_as_it_was_locked_is_refused(built: Built, tmp_path: Path) -> None:
    file = make_site(tmp_path)
    shutil.copy(built.directory / "site.lock", tmp_path)
    lock = tmp_path / "site.lock"
    changed = make_wheel(tmp_path / "wheels", "tiny_dep", "2.0", {"tiny_dep/__init__.py": "VERSION = 666\n"})
    assert "the wheel tiny-dep 2.0 has the hash" in run(file, "-o", tmp_path / "dist", code=78).output
    changed.unlink()
    assert "the wheel tiny-dep 2.0 is not there" in run(file, "-o", tmp_path / "dist", code=78).output
    file.write_text(SITE.replace('"<2"', '"<3"'))
    assert "--relock" in run(file, "-o", tmp_path / "dist", code=78).output
    file.write_text(SITE)
    lock.write_text(lock.read_text() + "https://example.com/x.whl\n")
    assert "site.lock:5: this is no NAME==VERSION" in run(file, "-o", tmp_path / "dist", code=78).output
    assert not (tmp_path / "dist").exists()


def test_no_member_tells_who_built_it_or_when(built: Built) -> None:
    members = built.tree().getmembers()
    assert {(one.uid, one.gid, one.uname, one.gname, one.mtime) for one in members} == {
        (0, 0, "root", "root", 315532800)
    }
    names = [one.name.rstrip("/") for one in members]
    assert len(names) == len(set(names))
    assert not any(name.endswith((".pyc", "direct_url.json", "INSTALLER")) for name in names)
    assert not any(str(built.directory).encode() in content for content in contents(built).values())
    modes = {one.name: one.mode for one in members}
    assert modes[f".{PREFIX}/bin/crinoid"] == 0o755
    assert modes["./etc/crinoid/certs.d/a.example/client.key"] == 0o600
    assert modes["./etc/edge.conf"] == 0o640


def contents(built: Built) -> dict[str, bytes]:
    archive = built.tree()
    found = {}
    for member in archive.getmembers():
        if (file := archive.extractfile(member) if member.isfile() else None) is not None:
            found[member.name] = file.read()
    return found


def test_source_date_epoch_is_the_time_of_all_members_and_order_is_by_name() -> None:
    files = [("/b/two", tree.Entry(b"2")), ("/a/one", tree.Entry(b"1", 0o600)), ("/b/link", tree.Entry(link="two"))]
    one, other = tree.Tree("/b", dict(files)), tree.Tree("/b", dict(reversed(files)))
    written = write_tar(one.sorted(), 1700000000)
    assert written == write_tar(other.sorted(), 1700000000) != write_tar(other.sorted(), 1700000001)
    with tarfile.open(fileobj=io.BytesIO(written)) as archive:
        assert archive.getnames() == [".", "./a", "./a/one", "./b", "./b/link", "./b/two"]
        assert {member.mtime for member in archive.getmembers()} == {1700000000}


def test_each_file_in_record_is_there(built: Built) -> None:
    files = contents(built)
    records = [name for name in files if name.endswith("/RECORD")]
    assert len(records) == 3
    for record in records:
        base = record.rpartition("/")[0].rpartition("/")[0]
        for line in files[record].decode().splitlines():
            assert f"{base}/{line.split(',')[0]}" in files


@pytest.mark.skipif(
    Path("/usr/bin/python3").resolve().name != f"python3.{sys.version_info.minor}",
    reason="/usr/bin/python3 is not of the version that runs the tests",
)
def test_it_runs_from_wherever_it_lies_and_sees_nothing_of_the_host(node: Path, tmp_path: Path) -> None:
    moved = tmp_path / "some where"
    (node / PREFIX[1:]).rename(moved)
    link = tmp_path / "crinoid"
    link.symlink_to(moved / "bin/crinoid")
    done = subprocess.run([link, "serve"], capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]})
    assert done.stdout == f"{moved} 2 serve\n"
    seen = "import sys; print([path for path in sys.path if 'dist-packages' in path or path.startswith('/usr/local')])"
    done = subprocess.run([moved / "bin/python3", "-I", "-c", seen], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_package(built: Built) -> None:
    control = built.control()
    minor = sys.version_info.minor
    assert (
        "Package: edge-node\nVersion: 1.0\nArchitecture: amd64\nMaintainer: Edge <edge@example.com>"
        in control["control"]
    )
    assert f"Depends: python3 (>= 3.{minor}), python3 (<< 3.{minor + 1}), conmon, runc | crun" in control["control"]
    assert control["conffiles"].splitlines() == ["/etc/crinoid/certs.d/a.example/client.key", "/etc/edge.conf"]
    assert "for name in crinoid; do" in control["postinst"]
    assert "for name in edge; do" in control["postinst"]
    for script in ("postinst", "prerm", "postrm"):
        subprocess.run(["sh", "-n"], input=control[script], text=True, check=True)
    files = contents(built)
    packaged = (Path(__file__).parents[5] / "packaging/crinoid.service").read_text()
    assert f"ExecStart={PREFIX}/bin/crinoid serve" in (
        unit := files["./usr/lib/systemd/system/crinoid.service"].decode()
    )
    assert unit == packaged.replace("/usr/local/bin/crinoid", f"{PREFIX}/bin/crinoid"), "there is one text of the unit"
    drop_in = files["./usr/lib/systemd/system/crinoid.service.d/10-site.conf"].decode()
    assert drop_in == '[Service]\nEnvironment="HTTPS_PROXY=http://proxy.example:3128/%%20"\n'


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is Debian's")
def test_dpkg_reads_the_package(built: Built) -> None:
    package = built.directory / "dist/edge-node_1.0_amd64.deb"
    listed = subprocess.run(["dpkg-deb", "--contents", package], capture_output=True, text=True, check=True).stdout
    assert f".{PREFIX}/bin/python3 -> /usr/bin/python3" in listed
    told = subprocess.run(["dpkg-deb", "--field", package, "Version"], capture_output=True, text=True, check=True)
    assert told.stdout == "1.0\n"


def test_the_scripts_never_fail(built: Built, tmp_path: Path) -> None:
    """On a host where nothing of what they call works."""
    script = built.control()["postinst"].replace(PREFIX, str(tmp_path / "nowhere"))
    assert "set -e" not in script
    script = script.replace("/run/systemd/system", str(tmp_path))
    done = subprocess.run(
        ["/bin/sh", "-c", script, "postinst", "configure", "0.9"],
        env={"PATH": "/nonexistent"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "this host is not fit" in done.stderr


def test_the_bill_of_materials(built: Built) -> None:
    sbom = json.loads(built.output("cdx.json"))
    assert (sbom["bomFormat"], sbom["specVersion"], sbom["version"]) == ("CycloneDX", "1.6", 1)
    assert sbom["serialNumber"].startswith("urn:uuid:")
    assert sbom["metadata"]["timestamp"] == "1980-01-01T00:00:00Z"
    by_name = {component["name"]: component for component in sbom["components"]}
    assert list(by_name) == ["crinoid", "tiny-dep", "tiny-plugin"]
    wheel = (built.directory / "wheels/tiny_dep-2.0-py3-none-any.whl").read_bytes()
    assert by_name["tiny-dep"]["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(wheel).hexdigest()}]
    assert by_name["tiny-dep"]["purl"] == "pkg:pypi/tiny-dep@2.0"
    assert by_name["crinoid"]["licenses"] == [{"expression": "Apache-2.0"}]
    assert by_name["tiny-dep"]["licenses"] == [{"license": {"name": "MIT License"}}]
    assert "licenses" not in by_name["tiny-plugin"]
    edges = {edge["ref"]: edge["dependsOn"] for edge in sbom["dependencies"]}
    assert edges["edge-node@1.0"] == ["pkg:pypi/crinoid@1.5", "pkg:pypi/tiny-plugin@1.0"]
    assert edges["pkg:pypi/crinoid@1.5"] == ["pkg:pypi/tiny-dep@2.0"]


def test_the_bill_of_materials_fits_the_schema(built: Built) -> None:
    """CycloneDX's own, of version 1.6, read strictly; a document that is damaged does not."""
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    text = built.output("cdx.json").decode()
    assert validator.validate_str(text) is None
    for damage in (('"Apache-2.0"', "5"), ('"SHA-256"', '"SHA-257"'), ('"bomFormat"', '"bomform"')):
        assert validator.validate_str(text.replace(*damage)) is not None


def test_licences_are_collected(built: Built) -> None:
    files = contents(built)
    assert files[f".{PREFIX}/share/licenses/crinoid/LICENSE"] == b"the licence's text"
    index = files[f".{PREFIX}/share/licenses/INDEX"].decode().splitlines()
    assert index == [
        "crinoid 1.5: Apache-2.0",
        "tiny-dep 2.0: MIT License (no text in its wheel)",
        "tiny-plugin 1.0: not said (no text in its wheel)",
    ]


def test_verify_of_a_node_that_is_the_build(built: Built, node: Path) -> None:
    cache = node / f"{PREFIX[1:]}/lib/__pycache__"
    cache.mkdir()
    (cache / "x.pyc").write_bytes(b"bytecode is the node's own")
    assert run("verify", "--prefix", f"{node}{PREFIX}", "--root", node).output.startswith("this is edge-node 1.0 (")
    listed = built.directory / "dist/edge-node_1.0_amd64.build.json"
    assert run("verify", listed, "--root", node).output.startswith("this is edge-node 1.0 (")


def test_verify_names_each_difference(built: Built, node: Path) -> None:
    packages = next((node / PREFIX[1:] / "lib").glob("python3.*/site-packages"))
    (packages / "tiny_dep/__init__.py").write_text("VERSION = 3\n")
    (packages / "tiny_plugin/__init__.py").unlink()
    (packages / "evil.pth").write_text("import evil")
    (node / "etc/edge.conf").chmod(0o666)
    (node / "etc/crinoid/certs.d/a.example/client.key").write_text("another")
    (node / "usr/bin/crinoid").unlink()
    result = run("verify", "--prefix", f"{node}{PREFIX}", "--root", node, code=1)
    assert result.stdout.splitlines() == [
        f"{packages}/tiny_dep/__init__.py: has another content",
        f"{packages}/tiny_plugin/__init__.py: is not there",
        f"{packages}/evil.pth: is not of the build",
        f"{node}/etc/crinoid/certs.d/a.example/client.key: has another content (configuration)",
        f"{node}/etc/edge.conf: has the mode 0666, not 0640 (configuration)",
        f"{node}/usr/bin/crinoid: is not there",
    ]
    assert "6 differences from edge-node 1.0" in result.stderr
    assert len(run("verify", "--prefix", f"{node}{PREFIX}", "--prefix-only", code=1).stdout.splitlines()) == 3


def test_verify_does_not_believe_a_list_that_was_changed(node: Path) -> None:
    own = node / PREFIX[1:] / "share/build.json"
    own.write_text(own.read_text().replace('"mode": "0755"', '"mode": "4755"'))
    assert "has been changed" in run("verify", "--prefix", f"{node}{PREFIX}", code=78).output
    own.unlink()
    assert "is this node a build?" in run("verify", "--prefix", f"{node}{PREFIX}", code=78).output


def test_the_configuration_is_checked_with_the_build_s_own_crinoid(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = "import sys, pathlib\nsys.path.insert(0, sys.argv[1])\nimport tiny_dep\nsys.exit(str(sys.argv[2:]))"
    monkeypatch.setattr(tree, "_CHECK", check)
    file = make_site(tmp_path, 'config = ["config.toml", "more.toml"]\n' + SITE + '[runtime_classes]\nfast = "crun"\n')
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "more.toml").write_text("")
    shutil.copy(built.directory / "site.lock", tmp_path)
    assert "['/etc/crinoid', 'fast', 'crun']" in run(file, "-o", tmp_path / "dist", code=78).output


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('prefix = "/opt"', "prefix: must be an absolute path of its own"),
        ('name = "Edge Node"', "name: must be a name of small letters"),
        ('versoin = "1"', 'versoin: unknown key; did you mean "version"?'),
        ('users = ["ro ot"]', "users[0]: must be an account's name"),
        ("name = ", "this is no TOML"),
    ],
)
def test_mistakes_in_the_file_are_told(tmp_path: Path, line: str, words: str) -> None:
    file = tmp_path / "site.toml"
    file.write_text(f'{line}\nversion = "1"\n')
    assert words in run(file, code=78).output


def test_the_example_of_the_document_is_valid(tmp_path: Path) -> None:
    document = Path(__file__).parents[5] / "docs/site.md"
    below = document.read_text().partition("## The file\n")[2].partition("\nPaths are beside")[0]
    (tmp_path / "site.toml").write_text("\n".join(line.removeprefix("    ") for line in below.splitlines()))
    site = read_site(tmp_path / "site.toml")
    assert site.requirements == ("crinoid[policy]>=0.1,<0.2", "crinoid-example>=1,<2")
    assert set(Site.model_fields) - set(site.model_fields_set) == {"description"}


@pytest.mark.parametrize("place", [f"{PREFIX}/bin/crinoid", "/etc/../x", "etc/x", "/etc/x/"])
def test_a_file_of_the_site_s_can_t_replace_one_of_the_build_nor_lie_nowhere(place: str) -> None:
    made = tree.Tree(PREFIX)
    made.add(f"{PREFIX}/bin/crinoid", tree.Entry(b"ours"))
    with pytest.raises(ConfigurationError, match=r"is a file of the build itself|absolute path"):
        made.add(place, tree.Entry(b"theirs"))
    assert [content for _, content in made.sorted()] == [tree.Entry(b"ours")]

"""Reading configuration files: merging, places, and what is said of mistakes."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.config.loader import ConfigPaths, Loaded, load
from crinoid.core.config.models import Config

EXAMPLE = """\
[runtimes.runc]
driver = "runc"
[runtimes.fast]              # a RuntimeClass handler "fast"
driver = "crun"
options = { binary = "/opt/site/crun" }
network = "host-only"
[network]
driver = "cni"
[networks.host-only]
driver = "host"
"""


def load_text(directory: Path, text: str, **drop_ins: str) -> Loaded:
    main = directory / "config.toml"
    main.write_text(text)
    (directory / "conf.d").mkdir()
    for name, content in drop_ins.items():
        (directory / "conf.d" / f"{name}.toml").write_text(content)
    return load(ConfigPaths.at(main))


def refusal(directory: Path, text: str, **drop_ins: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_text(directory, text, **drop_ins)
    return str(caught.value).replace(f"{directory}/", "")


def test_no_file_at_all_gives_the_defaults(tmp_path: Path) -> None:
    loaded = load(ConfigPaths(tmp_path / "config.toml", tmp_path / "conf.d"))
    assert loaded.config == Config()
    assert loaded.files == ()
    assert loaded.config.network.driver == "auto"
    assert list(loaded.config.enabled_runtimes) == ["runc"]
    assert loaded.origins.tell(("network", "driver")) == "default"


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"absent\.toml: there is no such file"):
        load(ConfigPaths.at(tmp_path / "absent.toml"))


def test_the_example_of_the_design_parses(tmp_path: Path) -> None:
    config = load_text(tmp_path, EXAMPLE).config
    assert config.runtimes["fast"].options == {"binary": "/opt/site/crun"}
    assert config.runtimes["fast"].network == "host-only"
    assert config.runtimes["runc"].network == "default"


def test_drop_ins_are_merged_in_the_order_of_their_names(tmp_path: Path) -> None:
    loaded = load_text(
        tmp_path,
        '[log]\nlevel = "info"\n[images]\npinned = ["a", "b/*"]\n[server]\ngroup = "g"\n',
        b='[log]\nlevel = "error"\n',
        a='[log]\nlevel = "debug"\nformat = "json"\n[images]\npinned = ["c"]\n',
    )
    config, origins = loaded.config, loaded.origins
    assert (config.log.level, config.log.format, config.images.pinned) == ("error", "json", ("c",))
    assert [file.name for file in loaded.files] == ["config.toml", "a.toml", "b.toml"]
    assert origins.tell(("log", "level")) == f"{tmp_path}/conf.d/b.toml:2"
    assert origins.tell(("log", "format")) == f"{tmp_path}/conf.d/a.toml:3"
    assert origins.tell(("images", "pinned")) == f"{tmp_path}/conf.d/a.toml:5"
    assert origins.of(("images", "pinned", 1)) is None, "the element of the list that was replaced"
    assert origins.tell(("server", "group")) == f"{tmp_path}/config.toml:6"
    assert origins.tell(("server", "mode")) == "default"


def test_a_handler_in_a_drop_in_joins_the_default_one(tmp_path: Path) -> None:
    config = load_text(tmp_path, "", kata='[runtimes.kata]\ndriver = "kata"\n').config
    assert set(config.enabled_runtimes) == {"runc", "kata"}


def test_the_default_handler_can_be_taken_away(tmp_path: Path) -> None:
    text = '[runtimes.runc]\nenabled = false\n[runtimes.c]\ndriver = "crun"\n[pods]\ndefault_runtime = "c"\n'
    assert set(load_text(tmp_path, text).config.enabled_runtimes) == {"c"}


def test_options_of_a_default_slot_need_no_driver_key(tmp_path: Path) -> None:
    config = load_text(tmp_path, '[runtimes.runc.options]\nbinary = "/x"\n').config
    assert (config.runtimes["runc"].driver, config.runtimes["runc"].options) == ("runc", {"binary": "/x"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[runtimes.x]\ndriver = "runc"\nnetwrk = "y"\n',
            'config.toml:3: runtimes.x.netwrk: unknown key; did you mean "network"?',
        ),
        ("\n[imagse]\n", 'config.toml:2: imagse: unknown key; did you mean "images"?'),
        (
            "[deadlines.runtime]\ncraete = 1\n",
            'config.toml:2: deadlines.runtime.craete: unknown key; did you mean "create"?',
        ),
        (
            '[images]\nmax_parallel_layers = "4"\n',
            'config.toml:2: images.max_parallel_layers: should be a valid integer, not "4"',
        ),
        ("[log]\nlevel = 5\n", "config.toml:2: log.level: should be 'debug', 'info', 'warning' or 'error', not 5"),
        ('[runtimes.x]\nnetwork = "default"\n', "config.toml:1: runtimes.x.driver: this key is missing"),
        ('root = "var"\n', 'config.toml:1: root: must be an absolute path, not "var"'),
        ('[images]\nsources = ["layout", 3]\n', "config.toml:2: images.sources[1]: should be a valid string, not 3"),
        ('[server]\nmode = "999"\n', "config.toml:2: server.mode: must be octal permissions, such as 0660, not"),
        ("network = 5\n", "config.toml:1: network: should be a table, not 5"),
        ('[runtimes."a/b"]\ndriver = "runc"\n', 'config.toml:1: runtimes."a/b": must be a name of at most 63 letters'),
        ('root = "~/x"\n', "config.toml:1: root: must be an absolute path; ~ is not expanded"),
        (
            '[pods]\ndefault_ulimits = ["nofiles=1024"]\n',
            "config.toml:2: pods.default_ulimits[0]: there is no limit 'nofiles'; did you mean \"nofile\"?",
        ),
        ('[pods]\ndefault_ulimits = ["nofile=2:1"]\n', "the soft limit must be at most the hard one"),
        ('[pods]\ndefault_ulimits = ["nofile"]\n', "must be name=soft[:hard], such as nofile=1024:4096"),
        (
            '[pods]\ndefault_capabilities = ["CAP_CHOWNN"]\n',
            'pods.default_capabilities[0]: is no capability of Linux; did you mean "CAP_CHOWN"?',
        ),
        ('[pods]\ncgroup_root = "/a/../b"\n', "config.toml:2: pods.cgroup_root: must be a cgroup's path"),
        ('[pods]\nmonitor_cgroup = "a"\n', "config.toml:2: pods.monitor_cgroup: must be a cgroup's path"),
        ('[pods]\npause_image = "A b"\n', "config.toml:2: pods.pause_image: "),
        ('[images]\npinned = ["a", "B:"]\n', "config.toml:2: images.pinned: "),
        ('[pods.default_env]\n"A=B" = "c"\n', "config.toml:1: pods.default_env: 'A=B' is not the name of a variable"),
        ('[pods.default_sysctls]\n"a b" = "c"\n', "config.toml:1: pods.default_sysctls: 'a b' is not a sysctl's name"),
        ('[metrics]\nlisten = "localhost:99999"\n', "metrics.listen: must be host:port with a port of at most 65535"),
        ('[metrics]\nlisten = "::1:9090"\n', "metrics.listen: must be host:port with an IPv6 address in brackets"),
        ('[streaming]\naddress = "localhost"\n', "streaming.address: must be an IP address, such as 127.0.0.1"),
        ('[tracing]\nendpoint = "here:4317"\n', "tracing.endpoint: must be a URL, such as http://127.0.0.1:4317"),
        (
            '[images]\nsources = ["layuot"]\n',
            'config.toml:2: images.sources[0]: there is no slot "layuot" in [registries]; did you mean "layout"?',
        ),
        (
            '[runtimes.x]\ndriver = "runc"\nnetwork = "hst"\n[networks.host]\ndriver = "host"\n',
            'config.toml:3: runtimes.x.network: there is no slot "hst" in [networks]; did you mean "host"?',
        ),
        (
            '[runtimes.x]\ndriver = "runc"\nsnapshotter = "zfs"\n',
            'config.toml:3: runtimes.x.snapshotter: there is no slot "zfs" in [snapshotters]; known: default',
        ),
        (
            '[pods]\ndefault_runtime = "rnc"\n',
            'config.toml:2: pods.default_runtime: there is no slot "rnc" in [runtimes]; did you mean "runc"?',
        ),
        ("[networks.default]\ndriver = 'cni'\n", "config.toml:1: networks.default: this name is the table [network]'s"),
        ("[a]\nx = 1\nx = 2\n", "config.toml:3: this is no TOML: Cannot overwrite a value"),
        (
            "[log]\nlevel = debug # x\n",
            'config.toml:2: this is no TOML: Invalid value: a text needs quotes, as in "debug"',
        ),
        ("[pods]\npids_limit = 9223372036854775808\n", "config.toml:2: pods.pids_limit: must be a number of 64 bits"),
        ("[runtimes.runc.options]\nx = [1, 99999999999999999999]\n", "options.x[1]: must be a number of 64 bits"),
        ("[server]\ngraceful_stop_s = inf\n", "config.toml:2: server.graceful_stop_s: should be less than or equal to"),
        ("[server]\nmax_message_bytes = 99999999999\n", "server.max_message_bytes: should be less than or equal to"),
        ("[pods]\nshm_size_bytes = 9223372036854775807\n", "pods.shm_size_bytes: should be less than or equal to"),
        ("[pods]\ndefault_ulimits = ['core=0', 'core=1']\n", "the limit 'core' is there more than once"),
        ("[images]\nplatform = 'windows/amd64'\n", "images.platform: must begin with linux"),
        ("[images]\nplatform = 'linux/amd46'\n", "there is no architecture 'amd46'; did you mean \"amd64\"?"),
        ("[tracing]\nendpoint = 'http://a:99999'\n", "tracing.endpoint: must have a port of at most 65535"),
        ("root = '/a\\nb'\n".replace("'", '"'), "root: must be a path without line ends"),
        ("level = 'debug'\n", "config.toml:1: level: unknown key; did you mean log.level?"),
        ("[runtimes.x]\ndriver = 'crun'\nbinary = '/x'\n", "did you mean options.binary, if it is one of the driver's"),
        (
            "[plugins.x]\n",
            "config.toml:1: plugins: unknown key; a table of containerd or CRI-O: `crinoid config import`",
        ),
        ("a = [1,\n", "config.toml:2: this is no TOML: "),
        ("log.level = info\n", 'a statement: a text needs quotes, as in "info"'),
        ("log.level = 10s # x\n", 'a text needs quotes, as in "10s"'),
        ("log.level = \u201cinfo\u201d\n", "these are typographic quotes"),
        ('log.level = "info" // x\n', "a comment begins with #"),
        ("log.level: info\n", "a key is followed by =, not by a colon"),
        ('{"log": 1}\n', "it looks like JSON or YAML"),
        ("runtimes.runc.enabled = True\n", "write true or false, in small letters"),
        ("[log]\n[log]\n", "config.toml:2: this is no TOML: Cannot declare [log] twice"),
        ("[a]\nx = 1\nx = 2\n", "Cannot overwrite a value: its key is there already"),
        ("images.sources = 'layout'\n", 'should be a valid array, not "layout": write ["layout"]'),
        ("images.max_parallel_layers = '3'\n", 'should be a valid integer, not "3": write 3, without quotes'),
        ("pods.default_sysctls = {'net.ipv4.ip_forward' = 1}\n", 'should be a valid string, not 1: write "1"'),
        ("network = 'bridge'\n", 'should be a table, not "bridge": write network.driver = "bridge"'),
        ("runtimes.x = 'crun'\n", 'write runtimes.x.driver = "crun"'),
        ("metrics.port = 1\n", "metrics.port: unknown key; did you mean streaming.port? Known: listen"),
        ("snapshotter.root = '/x'\n", "did you mean options.root, if it is one of the driver's options?"),
        ("[runtimes.x]\n", "runtimes.x.driver: this key is missing; `crinoid plugins` lists the drivers"),
        (
            "[runtimes.x]\ndriver = 'runc'\nsnapshotter = 'zfs'\n",
            "known: default; a table [snapshotters.zfs] with a driver makes it",
        ),
    ],
)
def test_a_mistake_is_told_with_file_line_key_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(tmp_path, text)


def test_all_mistakes_are_told_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    lines = refusal(tmp_path, "[log]\nlvel = 1\nformt = 2\n[server]\nmod = 3\n").splitlines()
    assert [line.split(": ")[0] for line in lines] == ["config.toml:2", "config.toml:3", "config.toml:5"]


def test_a_mistake_in_a_drop_in_names_the_drop_in(tmp_path: Path) -> None:
    assert refusal(tmp_path, '[log]\nlevel = "info"\n', x="[log]\n\nlevel = 1\n").startswith(
        "conf.d/x.toml:3: log.level"
    )


def test_a_file_that_is_no_text_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"# fine\nroot = '\xff'\n")
    with pytest.raises(ConfigurationError, match=r"config\.toml:2: this is no UTF-8 text"):
        load(ConfigPaths.at(tmp_path / "config.toml"))


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"\xef\xbb\xbfroot = '/x'\n")
    assert load(ConfigPaths.at(tmp_path / "config.toml")).config.root == Path("/x")


@pytest.mark.parametrize("closed", ["", "conf.d"])
def test_a_directory_that_can_not_be_read_is_told(tmp_path: Path, closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root can read everything, the refusal of the kernel is a fake's."""
    (tmp_path / "conf.d").mkdir()

    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir" if closed else "stat", refuse)
    name = "conf.d" if closed else "config.toml"
    with pytest.raises(ConfigurationError, match=f"{name}: can't be read: Permission denied"):
        load(ConfigPaths(tmp_path / "config.toml", tmp_path / "conf.d"))


def test_a_drop_in_that_can_not_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.toml").symlink_to("/proc/self/mem")
    with pytest.raises(ConfigurationError, match=r"config\.toml: can't be read: "):
        load(ConfigPaths.at(tmp_path / "config.toml"))


def test_a_deadline_of_a_hook_without_its_own_is_the_default() -> None:
    deadlines = Config().deadlines.network
    assert deadlines.of("status") == 10
    assert deadlines.of("plan") == deadlines.default == 60


def test_every_field_is_described() -> None:
    schema = Config.model_json_schema()
    for name, table in {"Config": schema, **schema["$defs"]}.items():
        for field, content in table["properties"].items():
            referred = schema["$defs"].get(content.get("$ref", "").removeprefix("#/$defs/"), {})
            assert content.get("description") or referred.get("description"), f"{name}.{field} has no description"


def test_a_mistake_is_told_once(tmp_path: Path) -> None:
    """Also where what it is about is needed, and has to be left out for what is told of the rest."""
    assert refusal(tmp_path, "[runtimes.x]\ndriver = ''\n").splitlines() == [
        "config.toml:2: runtimes.x.driver: must be the name of a driver; `crinoid plugins` lists those that are "
        'installed, not ""'
    ]


@pytest.mark.parametrize("place", ["config.toml", "conf.d", "conf.d/10.toml"])
@pytest.mark.parametrize("what", ["directory", "fifo", "loop", "nowhere", "file"])
def test_what_can_t_be_read_as_it_should_is_told_and_never_left_out(tmp_path: Path, place: str, what: str) -> None:
    """What it says could change anything. Without --config, too, where no file at all is no mistake."""
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    if what == ("directory" if place == "conf.d" else "file"):
        return
    makers: dict[str, Callable[[], object]] = {
        "directory": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
        "loop": lambda: path.symlink_to(path.name),
        "nowhere": lambda: path.symlink_to("nowhere"),
        "file": path.touch,
    }
    makers[what]()
    with pytest.raises(ConfigurationError, match=f"{path}: "):
        load(ConfigPaths(tmp_path / "config.toml", tmp_path / "conf.d"))


def test_a_drop_in_is_switched_off_by_dev_null_and_hidden_ones_are_editors_own(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/10.toml").symlink_to("/dev/null")
    (tmp_path / "conf.d/.#20.toml").symlink_to("user@host.1")
    (tmp_path / "conf.d/.20.toml.swp").write_bytes(b"\0")
    (tmp_path / "conf.d/20.toml").touch()
    assert load(ConfigPaths(tmp_path / "config.toml", tmp_path / "conf.d")).files == (tmp_path / "conf.d/20.toml",)

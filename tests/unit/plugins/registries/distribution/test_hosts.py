"""``hosts.toml`` and its neighbours, as containerd's documentation of the form has them."""

from pathlib import Path

import pytest

from crinoid.core.api.errors import ConfigurationError
from crinoid.plugins.registries.distribution.hosts import Endpoint, Tls, check_hosts, find_endpoints


def write(certs_d: Path, name: str, text: str) -> Path:
    directory = certs_d / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "hosts.toml").write_text(text)
    return directory


def find(registry: str, *paths: Path, plain_http: tuple[str, ...] = ()) -> tuple[Endpoint, ...]:
    return find_endpoints(registry, paths, plain_http)


def urls(endpoints: tuple[Endpoint, ...]) -> list[str]:
    return [endpoint.url for endpoint in endpoints]


@pytest.mark.parametrize(
    ("registry", "url"),
    [
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("example.com:5000", "https://example.com:5000/v2"),
        ("localhost:5000", "https://localhost:5000/v2"),
        ("[::1]:5000", "https://[::1]:5000/v2"),
        ("plain.test", "http://plain.test/v2"),
        ("plain.test:80", "https://plain.test:80/v2"),
    ],
)
def test_with_no_file_the_registry_is_asked_by_https_unless_named(tmp_path: Path, registry: str, url: str) -> None:
    assert find(registry, tmp_path, plain_http=("plain.test",)) == (Endpoint(url),)


def test_mirrors_keep_their_order_and_the_registry_is_last(tmp_path: Path) -> None:
    hosts = "".join(f'[host."https://{name}.test"]\n' for name in ("zeta", "alpha", "mid"))
    write(tmp_path, "docker.io", hosts)
    endpoints = find("docker.io", tmp_path)
    assert urls(endpoints) == [
        "https://zeta.test/v2",
        "https://alpha.test/v2",
        "https://mid.test/v2",
        "https://registry-1.docker.io/v2",
    ]
    assert [endpoint.is_mirror for endpoint in endpoints] == [True, True, True, False]
    assert [endpoint.namespace for endpoint in endpoints] == ["docker.io"] * 3 + [""]
    assert endpoints[0].label == "mirror https://zeta.test"


def test_every_field(tmp_path: Path) -> None:
    directory = write(
        tmp_path,
        "example.com",
        """
        server = "http://upstream.test:8080/"
        ca = "/abs/ca.pem"
        [host."mirror.test/a/b"]
          capabilities = ["pull"]
          ca = ["one.pem", "two.pem"]
          client = [["c.cert", "c.key"], ["both.pem", ""]]
          skip_verify = true
          dial_timeout = "1m1.5s"
          [host."mirror.test/a/b".header]
            X-One = "1"
            X-Two = ["a", "b"]
        [host."https://whole.test/v2/proxy"]
          override_path = true
          client = ["x.pem", "y.pem"]
        [host."https://given.test/v2/"]
        """,
    )
    first, second, third, last = find("example.com", tmp_path)
    assert first == Endpoint(
        url="https://mirror.test/a/b/v2",
        is_mirror=True,
        capabilities=frozenset({"pull"}),
        tls=Tls(
            (directory / "one.pem", directory / "two.pem"),
            ((directory / "c.cert", directory / "c.key"), (directory / "both.pem", directory / "both.pem")),
            True,
        ),
        headers=(("X-One", "1"), ("X-Two", "a"), ("X-Two", "b")),
        dial_timeout_s=61.5,
        namespace="example.com",
    )
    assert second.url == "https://whole.test/v2/proxy"
    assert second.tls.client == ((directory / "x.pem",) * 2, (directory / "y.pem",) * 2)
    assert third.url == "https://given.test/v2"
    assert last == Endpoint("http://upstream.test:8080/v2", tls=Tls((Path("/abs/ca.pem"),)), namespace="example.com")


def test_the_registry_listed_as_a_host_is_asked_once_with_that_tables_settings(tmp_path: Path) -> None:
    directory = write(
        tmp_path,
        "example.com",
        'server = "https://example.com"\n[host."https://example.com"]\nca = "ca.pem"\n',
    )
    assert find("example.com", tmp_path) == (
        Endpoint("https://example.com/v2", tls=Tls((directory / "ca.pem",)), namespace=""),
    )


@pytest.mark.parametrize("name", ["docker.io", "index.docker.io", "https://docker.io", "registry-1.docker.io"])
def test_docker_hub_is_asked_where_its_api_is(tmp_path: Path, name: str) -> None:
    write(tmp_path, "docker.io", f'server = "{name}"\n')
    (endpoint,) = find("docker.io", tmp_path)
    assert (endpoint.url, endpoint.namespace) == ("https://registry-1.docker.io/v2", "")


@pytest.mark.parametrize("directory", ["example.com_5000_", "example.com:5000", "_default"])
def test_the_directories_of_a_registry_with_a_port(tmp_path: Path, directory: str) -> None:
    write(tmp_path, directory, '[host."https://m.test"]\n')
    assert urls(find("example.com:5000", tmp_path)) == ["https://m.test/v2", "https://example.com:5000/v2"]


def test_a_registrys_own_directory_goes_before_the_default_of_any_path(tmp_path: Path) -> None:
    write(tmp_path / "a", "_default", '[host."https://default.test"]\n')
    write(tmp_path / "b", "example.com", '[host."https://own.test"]\n')
    assert urls(find("example.com", tmp_path / "a", tmp_path / "b"))[0] == "https://own.test/v2"
    assert urls(find("other.com", tmp_path / "a", tmp_path / "b"))[0] == "https://default.test/v2"


def test_the_first_path_goes_before_the_second(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, "example.com", f'[host."https://{name}.test"]\n')
    assert urls(find("example.com", tmp_path / "b", tmp_path / "a"))[0] == "https://b.test/v2"


def test_certificates_as_docker_has_them(tmp_path: Path) -> None:
    directory = tmp_path / "example.com"
    directory.mkdir()
    for name in ("b.crt", "a.crt", "client.cert", "client.key"):
        (directory / name).touch()
    tls = Tls((directory / "a.crt", directory / "b.crt"), ((directory / "client.cert", directory / "client.key"),))
    assert find("example.com", tmp_path) == (Endpoint("https://example.com/v2", tls=tls),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("server = \n", "line 1"),
        ("server = 5", "server"),
        ('server = "ftp://x.test"', "is not the URL"),
        ('server = "https://"', "is not the URL"),
        ('server = "https://user:pw@x.test"', "is not the URL"),
        ('server = "https://x.test:port"', "port"),
        ('[host."https://x.test?a=b"]', "is not the URL"),
        ('[host."x.test"]\nca = 5', "host.x.test.ca"),
        ('skip_verify = "perhaps"', "skip_verify"),
        ('dial_timeout = "soon"', "dial_timeout"),
        ('dial_timeout = "0s"', "dial_timeout"),
        ('client = [["a", "b", "c"]]', "client"),
        (
            '[host."x.test"]\ncapabilities = ["pull", "resolv"]',
            "host.x.test.capabilities.1: Input should be 'pull', 'res",
        ),
        ('header = { "a b" = "x" }', "header"),
        ('header = { a = "x\\r\\nHost: evil" }', "header"),
    ],
)
def test_a_file_that_can_not_be_read_is_named_with_the_place(tmp_path: Path, text: str, words: str) -> None:
    write(tmp_path, "example.com", text)
    with pytest.raises(ConfigurationError) as caught:
        find("example.com", tmp_path)
    assert str(tmp_path / "example.com/hosts.toml") in caught.value.message
    assert words in caught.value.message
    assert check_hosts((tmp_path,)) == ((caught.value.message,), ())


def test_a_check_of_good_files_finds_nothing(tmp_path: Path) -> None:
    write(tmp_path, "example.com_5000_", 'server = "https://x.test"')
    write(tmp_path, "_default", "")
    assert check_hosts((tmp_path, tmp_path / "absent")) == ((), ())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('sever = "https://x.test"', 'sever: unknown key, which is passed over; did you mean "server"?'),
        ('[hosts."https://m.test"]', 'hosts: unknown key, which is passed over; did you mean "host"?'),
        ('[host."m.test"]\nskip_verfy = true', 'host."m.test".skip_verfy: unknown key, which is passed over; did you'),
        (
            '[host."m.test"]\nOverride-Path = true',
            '.Override-Path: unknown key, which is passed over; did you mean "ov',
        ),
        ('[host."m.test"]\nweight = 5', "weight: unknown key, which is passed over; known: ca, capabilities, client,"),
    ],
)
def test_a_key_that_nothing_reads_is_told_with_the_nearest_and_hinders_nothing(
    tmp_path: Path, text: str, words: str
) -> None:
    write(tmp_path, "example.com", text)
    told: list[str] = []
    assert find_endpoints("example.com", (tmp_path,), (), told.append)[-1].url == "https://example.com/v2"
    assert [text.startswith(f"{tmp_path}/example.com/hosts.toml: ") and words in text for text in told] == [True]
    assert check_hosts((tmp_path,)) == ((), tuple(told))


def test_a_header_has_any_name(tmp_path: Path) -> None:
    write(tmp_path, "example.com", '[host."m.test".header]\nX-Any = "1"')
    assert check_hosts((tmp_path,)) == ((), ())


def test_a_file_of_another_name_is_told(tmp_path: Path) -> None:
    write(tmp_path, "example.com", 'server = "https://x.test"').joinpath("hosts.toml").rename(
        tmp_path / "example.com/host.toml"
    )
    told: list[str] = []
    assert find_endpoints("example.com", (tmp_path,), (), told.append) == (Endpoint("https://example.com/v2"),)
    assert told == [f"{tmp_path}/example.com/host.toml is not read: the file's name must be hosts.toml"]
    assert check_hosts((tmp_path,)) == ((), tuple(told))


def test_capabilities_are_in_letters_of_any_size(tmp_path: Path) -> None:
    """As for containerd."""
    write(tmp_path, "example.com", '[host."m.test"]\ncapabilities = ["Pull", "RESOLVE"]')
    assert find_endpoints("example.com", (tmp_path,), ())[0].capabilities == {"pull", "resolve"}

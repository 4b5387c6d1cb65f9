"""WWW-Authenticate headers and proxies: what is read from the outside, in all its forms."""

import subprocess
import sys

import pytest

from crinoid.core.api.errors import ConfigurationError
from crinoid.plugins.registries.distribution.attempts import HostFault, RetryPolicy
from crinoid.plugins.registries.distribution.proxies import find_proxy
from crinoid.plugins.registries.distribution.tokens import Challenge, read_challenges
from crinoid.plugins.registries.distribution.transport import ContentDecoder


@pytest.mark.parametrize(
    ("headers", "challenges"),
    [
        ([], []),
        (["Basic"], [Challenge("basic")]),
        (['BASIC realm="a, b=c"'], [Challenge("basic", {"realm": "a, b=c"})]),
        (
            ['Bearer realm="https://a.test/t?x=1",service="s",scope="repository:a/b:pull,push"'],
            [
                Challenge(
                    "bearer", {"realm": "https://a.test/t?x=1", "service": "s", "scope": "repository:a/b:pull,push"}
                )
            ],
        ),
        (
            ['Negotiate, Basic realm="x", Bearer realm=y , service = "z"'],
            [
                Challenge("negotiate"),
                Challenge("basic", {"realm": "x"}),
                Challenge("bearer", {"realm": "y", "service": "z"}),
            ],
        ),
        (
            ["Negotiate oYG2MIGz==, Basic realm=x"],
            [Challenge("negotiate"), Challenge("basic", {"realm": "x"})],
        ),
        (["Basic a=b", "Bearer c=d"], [Challenge("basic", {"a": "b"}), Challenge("bearer", {"c": "d"})]),
        (["Basic a=, b=c"], [Challenge("basic", {"a": "", "b": "c"})]),
        ([r'Basic realm="a\"b\\"'], [Challenge("basic", {"realm": 'a"b\\'})]),
        (['Bearer realm="unclosed'], [Challenge("bearer")]),
        ([", ,"], []),
        (["=="], []),
    ],
)
def test_challenges(headers: list[str], challenges: list[Challenge]) -> None:
    assert list(read_challenges(headers)) == challenges


@pytest.mark.timeout(5)
@pytest.mark.parametrize("text", ["a" * 100_000, ", " * 50_000, 'a="' * 30_000, '\\"' * 50_000, "a =" * 30_000])
def test_no_header_takes_long(text: str) -> None:
    read_challenges([f"Bearer {text}", text])


PROXIES = {"https_proxy": "http://p.test:3128", "HTTP_PROXY": "plain.test:8080"}


@pytest.mark.parametrize(
    ("url", "no_proxy", "proxy"),
    [
        ("https://a.test/v2", "", "http://p.test:3128"),
        ("http://a.test/v2", "", "http://plain.test:8080"),
        ("http://localhost:5000/", "", None),
        ("https://127.0.0.9/", "", None),
        ("https://[::1]:5000/", "", None),
        ("https://a.test/", "*", None),
        ("https://a.test/", "b.test, a.test", None),
        ("https://x.a.test/", "a.test", None),
        ("https://x.a.test/", ".a.test", None),
        ("https://a.test/", ".a.test", "http://p.test:3128"),
        ("https://xa.test/", "a.test", "http://p.test:3128"),
        ("https://A.test:5000/", "a.TEST:5000", None),
        ("https://a.test:5001/", "a.test:5000", "http://p.test:3128"),
        ("https://10.1.2.3/", "10.0.0.0/8", None),
        ("https://10.1.2.3/", "10.1.2.3", None),
        ("https://11.1.2.3/", "10.0.0.0/8,rubbish/99", "http://p.test:3128"),
        ("https://[fd00::5]/", "fd00::/16", None),
    ],
)
def test_proxies(url: str, no_proxy: str, proxy: str | None) -> None:
    assert find_proxy(url, PROXIES | {"NO_PROXY": no_proxy}) == proxy


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("socks5://user:s3cret@p.test:1080", "'p.test:1080' of HTTPS_PROXY: socks5 proxies are not supported"),
        ("http://:::", "of HTTPS_PROXY: it is not of the form"),
        ("http://p.test:99999", "of HTTPS_PROXY: it is not of the form"),
        ("http://", "of HTTPS_PROXY: it is not of the form"),
        ("foo bar", "of HTTPS_PROXY: it is not of the form"),
        ("http://[::1", "of HTTPS_PROXY: it is not of the form"),
    ],
)
def test_a_proxy_that_can_not_be_used_is_named(text: str, words: str) -> None:
    with pytest.raises(HostFault, match=words) as caught:
        find_proxy("https://a.test/", {"HTTPS_PROXY": text})
    assert isinstance(caught.value.error, ConfigurationError)
    assert "s3cret" not in str(caught.value)


def test_no_proxy_in_the_environment_is_none() -> None:
    assert find_proxy("https://a.test/", {}) is None


def test_waits_grow_with_chance_and_have_an_end() -> None:
    policy = RetryPolicy(10, 0.5, 60)
    for number, longest in ((1, 0.5), (2, 1.0), (4, 4.0), (9, 30.0)):
        waits = {policy.wait_s(number) for _ in range(50)}
        assert longest / 2 <= min(waits) < max(waits) <= longest
        assert len(waits) > 10


def test_the_driver_is_loaded_without_its_http_client() -> None:
    """It would add a fifth of a second to the daemon's start."""
    code = "import sys, crinoid.plugins.registries.distribution; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0


@pytest.mark.parametrize("wire", [b"\x1f\x8b\xff\xff", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xff\xff"])
def test_a_damaged_encoding_is_the_hosts_fault_from_its_first_byte_on(wire: bytes) -> None:
    """So another host is asked."""
    with pytest.raises(HostFault, match="compressed, and damaged"):
        ContentDecoder("").decode(wire, 100)

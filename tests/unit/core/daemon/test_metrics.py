"""Every metric is in the table, on the page and in the exposition; the dashboard asks for none that is not there."""

import json
import re
import runpy
import socket
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from crinoid.core.api.errors import NotFound
from crinoid.core.config.models import MetricsConfig, TracingConfig
from crinoid.core.daemon.figures import NodeFigures
from crinoid.core.daemon.instruments import DaemonInstruments
from crinoid.core.daemon.metric_families import METRICS
from crinoid.core.daemon.watchdog import Watchdog
from crinoid.core.lifecycle.images.pull_figures import OTHER, PullFigures
from crinoid.core.slots.running import HookCalls
from unit.core.daemon.test_instruments import ask
from unit.core.lifecycle.conftest import FakeNode, a_container, a_pod, fake_node

__all__ = ["fake_node"]
ROOT = Path(__file__).parents[4]
DASHBOARD = ROOT / "packaging/grafana/crinoid.json"
OURS = "crinoid_"
_WORDS = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_FUNCTIONS = frozenset({"sum", "max", "min", "rate", "histogram_quantile", "min_over_time"})


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
async def exposition(fake_node: FakeNode, port: int, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """What a node with a pod, a container and a failure shows."""
    watchdog = Watchdog(HookCalls(), 1.0)
    instruments = DaemonInstruments(MetricsConfig(listen=f"127.0.0.1:{port}"), TracingConfig(), "1", watchdog)
    instruments.add(NodeFigures(fake_node.config, fake_node.now, "1.2.3"))
    pod = await fake_node.now.pods.run(a_pod(), "")
    await fake_node.now.containers.create(pod, a_container(), None)
    instruments.observe_rpc("RunPodSandbox", 0.1, "OK")
    instruments.observe("network", "default", "attach", 0.1, "ok")
    instruments.count_error("PullImage", NotFound.reason)
    fake_node.now.images._pulled.note("registry.example", "ok", 1.5, 1000)
    isolated = SimpleNamespace(problem="", restarts=2, memory_bytes=1 << 20)  # as of a slot with ``isolation``
    monkeypatch.setattr(fake_node.now.slots.network, "process", isolated)
    await instruments.open()
    yield (await ask(port)).partition("\r\n\r\n")[2]
    await instruments.close()


def queries() -> Iterator[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"].replace("label_values(", "sum(").replace(", instance)", ")")


def alerts() -> list[str]:
    return re.findall(r"^\| [^`|]+ \| `(.+)` \|$", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)


def metrics_of(query: str) -> set[str]:
    """Return the metrics that a PromQL query names: words that are no function, label, duration or string."""
    assert query.count("(") == query.count(")"), query
    assert query.count("{") == query.count("}"), query
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", " ", query)
    words = set(_WORDS.findall(_GROUPING.sub(" ", bare))) - {"by"}
    functions = {word for word in words if re.search(rf"\b{word}\s*\(", bare)} | (words & _FUNCTIONS)
    assert functions <= _FUNCTIONS, query
    return words - functions


def labels_of(query: str) -> set[str]:
    """Return the labels that a query groups by or selects."""
    grouped = re.findall(r"\bby\s*\(([^)]*)\)", query)
    selected = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", query)
    return {label.strip() for one in grouped for label in one.split(",")} | set(selected)


async def test_what_is_shown_is_what_the_table_says(exposition: str) -> None:
    shown = [one for one in text_string_to_metric_families(exposition) if one.name.startswith(OURS)]
    # prometheus-client says of each histogram when it was made
    families = {one.name: one for one in shown}
    assert sorted(families) == sorted(metric.name for metric in METRICS)
    for metric in METRICS:
        family = families[metric.name]
        assert (family.type, family.documentation) == (metric.kind, metric.about)
        named = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert named == set(metric.labels), f"{metric.name} has no sample, or other labels"


async def test_the_figures_are_true(exposition: str, fake_node: FakeNode) -> None:
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }
    assert found["crinoid_pods", "ready"] == 1
    assert found["crinoid_pods", "not-ready"] == 0
    assert found["crinoid_containers", "created"] == 1
    assert found["crinoid_images", "named"] == 1
    assert found["crinoid_ledger_entries",] == len(fake_node.now.store.ledger.entries()) > 0
    assert found["crinoid_deferred_removals",] == 0
    assert found["crinoid_unremoved", "default", "snapshotter"] == 0
    assert found["crinoid_errors_total", "NotFound", "PullImage"] == 1
    assert found["crinoid_pulls_total", "ok", "registry.example"] == 1
    assert found["crinoid_pull_seconds_total", "ok", "registry.example"] == 1.5
    assert found["crinoid_pull_bytes_total", "ok", "registry.example"] == 1000
    assert found["crinoid_state_bytes", "state"] > 0
    assert any(key[0] == "crinoid_build_info" and "1.2.3" in key for key in found)
    assert ("crinoid_plugin_info", "1", "default", "fake", "fakes", "network") in found


def test_the_page_has_every_metric() -> None:
    page = runpy.run_path(str(ROOT / "tools/generate_metrics.py"))
    text = (ROOT / "docs/metrics.md").read_text()
    assert text.partition(page["MARKER"])[2] == page["render"](), "run make docs"


@pytest.mark.parametrize("query", [*queries(), *alerts()])
def test_every_query_is_of_metrics_and_labels_that_there_are(query: str) -> None:
    by_sample = {sample: metric for metric in METRICS for sample in metric.samples}
    asked = metrics_of(query)
    assert asked
    assert asked <= by_sample.keys()
    labels = {"instance", "le"}.union(*(by_sample[name].labels for name in asked))
    assert labels_of(query) <= labels


def test_every_metric_is_on_the_dashboard() -> None:
    shown = set().union(*(metrics_of(query) for query in queries()))
    assert [metric.name for metric in METRICS if not shown.intersection(metric.samples)] == []


def test_a_query_of_what_is_not_there_is_noticed() -> None:
    assert metrics_of('sum by (x) (rate(crinoid_gone_total{a="b"}[5m])) / crinoid_pods') == {
        "crinoid_gone_total",
        "crinoid_pods",
    }
    assert labels_of('sum by (x, y) (crinoid_pods{a="b", c=~"d"})') == {"x", "y", "a", "c"}
    with pytest.raises(AssertionError):
        metrics_of("sum(rate(crinoid_pods[5m])")


def test_names_of_registries_do_not_fill_the_monitoring() -> None:
    figures = PullFigures()
    for number in range(150):
        figures.note(f"registry-{number}.example", "ok", 1.0, 10)
    sums = figures.sums()
    assert len(sums) == 101
    assert (sums[OTHER, "ok"].count, sums[OTHER, "ok"].fetched_bytes) == (50, 500)


def _say(answer: tuple[bool, str]) -> tuple[bool, str]:
    return answer


async def test_readiness_is_health_and_what_the_node_says(port: int) -> None:
    watchdog = Watchdog(HookCalls(), 1.0)
    instruments = DaemonInstruments(MetricsConfig(listen=f"127.0.0.1:{port}"), TracingConfig(), "1", watchdog)
    assert (await ask(port, "/readyz")).startswith("HTTP/1.0 503 ")
    watchdog.phase = "serving"
    assert (await ask(port, "/healthz")).startswith("HTTP/1.0 200 ")
    assert "starting" in await ask(port, "/readyz")
    for answer, code in ((True, "ok"), "200"), ((False, "NetworkReady: no configuration"), "503"):
        instruments.be_ready(partial(_say, answer))
        told = await ask(port, "/readyz")
        assert told.startswith(f"HTTP/1.0 {code} ")
        assert told.endswith(f"{answer[1]}\n")
    await instruments.close()

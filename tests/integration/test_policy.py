"""The extension policy in a real daemon: pulls through a registry and from layouts, loads, and images from before."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner

from crinoid.core.cli.main import main
from support.daemon import Daemon, container_config, pod_config
from support.images import Entry, build_image, make_layer
from support.registry import RunningRegistry, running_registry
from support.signing import BUNDLE, Key, bundle_of, make_key, referring, sign_by_tag


class Site:
    """A daemon with a policy, a layout directory and a registry."""

    def __init__(self, directory: Path, registry: RunningRegistry) -> None:
        self.layouts = directory / "layouts"
        self.key: Key = make_key(directory / "release.pub")
        self.registry = registry
        self.policy = f"""
            [extensions.policy]
            driver = "policy"
            [[extensions.policy.options.rules]]
            images = ["registry.test/*", "{registry.host}/*"]
            action = "signed"
            keys = ["{self.key.public}"]
        """
        self.sources = f"""
            [registries.layout]
            driver = "layout"
            options = {{ directory = "{self.layouts}" }}
            [registries.distribution]
            driver = "distribution"
            options = {{ plain_http = ["{registry.host}"] }}
            [network]
            driver = "host"
        """
        self.daemon = Daemon(directory / "daemon", self.sources + self.policy)

    def image(self, name: str) -> Any:
        layer = make_layer([Entry(path="name", content=name.encode())])
        return build_image(self.layouts / "all", name, [layer])

    def pull(self, name: str) -> str:
        return str(self.daemon.cri.call("PullImage", image={"image": name})["image_ref"])

    def decisions(self, name: str) -> dict[str, str]:
        info = self.daemon.cri.call("ImageStatus", image={"image": name}, verbose=True)["info"]
        return dict(json.loads(info["decisions"])) if "decisions" in info else {}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("policy")
    with running_registry(directory / "registry") as registry:
        site = Site(directory, registry)
        try:
            site.daemon.start()
            yield site
        finally:
            site.daemon.end()


def refused(site: Site, name: str) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        site.pull(name)
    return f"{caught.value.code().name}: {caught.value.details()}"


def test_a_signed_image_is_pulled_and_the_decision_shown(site: Site) -> None:
    image = site.image("registry.test/signed:1")
    sign_by_tag(site.layouts / "all", "registry.test/signed", image.manifest.digest, site.key)
    assert site.pull("registry.test/signed:1") == image.config.digest
    assert "is signed by release.pub" in site.decisions("registry.test/signed:1")["policy"]
    assert f"{image.manifest.digest} is signed by release.pub" in site.daemon.log.read_text()


def test_an_unsigned_one_is_refused_in_the_kubelet_s_word_and_nothing_of_it_is_fetched(site: Site) -> None:
    image = site.image("registry.test/unsigned:1")
    words = refused(site, "registry.test/unsigned:1")
    assert words.startswith("UNKNOWN: SignatureValidationFailed: ")
    assert "there is no signature of it" in words
    assert not (site.daemon.root / "content/blobs" / image.layers[0].digest.replace(":", "/")).exists()


def test_what_no_rule_is_about_is_refused(site: Site) -> None:
    site.image("other.test/app:1")
    assert refused(site, "other.test/app:1").startswith("FAILED_PRECONDITION: ")


def test_signatures_in_a_registry_by_tag_and_by_referrers_index(site: Site) -> None:
    """docker-registry has no referrers API: clients keep an index under a tag there."""
    layout = site.layouts / "all"
    name = f"{site.registry.host}/by-tag"
    image = site.image(f"{name}:1")
    sign_by_tag(layout, name, image.manifest.digest, site.key)
    assert site.pull(f"{name}:1") == image.config.digest  # from the layout, with its signature there
    pushed = site.image("pushed.test/referred:1")
    site.registry.push(layout, "pushed.test/referred:1", "referred:1")
    assert "SignatureValidationFailed" in refused(site, f"{site.registry.host}/referred:1")
    blob = referring(layout, pushed.manifest, BUNDLE, bundle_of(site.key, pushed.manifest.digest))
    push_referrer(site, blob, pushed.manifest.digest)
    assert site.pull(f"{site.registry.host}/referred:1") == pushed.config.digest
    assert "is signed by release.pub" in site.decisions(f"{site.registry.host}/referred:1")["policy"]


def test_a_signature_in_a_layout_that_refers_to_its_image(site: Site) -> None:
    layout = site.layouts / "all"
    image = site.image(name := "registry.test/referred:1")
    blob = referring(layout, image.manifest, BUNDLE, bundle_of(site.key, image.manifest.digest))
    index = json.loads((layout / "index.json").read_text())
    index["manifests"].append(blob.document())
    (layout / "index.json").write_text(json.dumps(index))
    assert site.pull(name) == image.config.digest
    assert "is signed by release.pub" in site.decisions(name)["policy"]


def push_referrer(site: Site, blob: Any, subject: str) -> None:
    """Push a manifest with its blobs, and the index of what refers to its subject."""
    base, layout = f"http://{site.registry.host}/v2/referred", site.layouts / "all"
    content = (layout / "blobs" / blob.digest.replace(":", "/")).read_bytes()
    document = json.loads(content)
    for one in (document["config"], *document["layers"]):
        path = layout / "blobs" / one["digest"].replace(":", "/")
        location = curl("-X", "POST", "-D", "-", "-o", "/dev/null", f"{base}/blobs/uploads/")
        url = next(line.split(" ", 1)[1] for line in location.splitlines() if line.lower().startswith("location"))
        joint = "&" if "?" in url else "?"
        curl("-X", "PUT", "--data-binary", f"@{path}", f"{url}{joint}digest={one['digest']}")
    put(f"{base}/manifests/{blob.digest}", blob.media_type, content)
    entry = blob.document() | {"artifactType": BUNDLE}
    index_type = "application/vnd.oci.image.index.v1+json"
    index = json.dumps({"schemaVersion": 2, "mediaType": index_type, "manifests": [entry]})
    put(f"{base}/manifests/{subject.replace(':', '-')}", index_type, index.encode())


def put(url: str, media_type: str, content: bytes) -> None:
    command = ["curl", "-sSf", "-X", "PUT", "-H", f"Content-Type: {media_type}", "--data-binary", "@-", url]
    subprocess.run(command, input=content, check=True, capture_output=True)


def curl(*arguments: str) -> str:
    header = ["-H", "Content-Type: application/octet-stream"]
    return subprocess.run(["curl", "-sSf", *header, *arguments], check=True, capture_output=True, text=True).stdout


def test_loads_are_judged_as_pulls_are(site: Site, tmp_path: Path) -> None:
    layer = make_layer([Entry(path="x", content=b"loaded")])
    build_image(tmp_path / "evil", f"{site.registry.host}/loaded:1", [layer])
    words = ["ctl", "-r", f"unix://{site.daemon.socket}", "load", str(tmp_path / "evil")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 1
    assert "is not signed by release.pub" in result.stderr


def test_an_image_from_before_the_policy_makes_no_container(site: Site) -> None:
    image = site.image(name := f"{site.registry.host}/before:1")
    site.daemon.stop()
    site.daemon.config = site.sources
    site.daemon.start()
    assert site.pull(name) == image.config.digest
    assert site.decisions(name) == {}
    site.daemon.stop()
    site.daemon.config = site.sources + site.policy
    site.daemon.start()
    config = pod_config("pod", log_directory=str(site.layouts.parent / "logs"))
    pod = site.daemon.cri.call("RunPodSandbox", config=config)["pod_sandbox_id"]
    try:
        with pytest.raises(grpc.RpcError) as caught:
            wanted = container_config("app", image.config.digest, "true")
            site.daemon.cri.call("CreateContainer", pod_sandbox_id=pod, config=wanted)
        assert "it was on the node" in caught.value.details()
        assert "is not signed by release.pub" in caught.value.details()
    finally:
        site.daemon.cri.call("RemovePodSandbox", pod_sandbox_id=pod)


def test_config_check_tells_what_is_wrong_with_a_key(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        '[extensions.policy]\ndriver = "policy"\n[[extensions.policy.options.rules]]\n'
        f'action = "signed"\nkeys = ["{tmp_path}/nothing.pub"]\n'
    )
    result = CliRunner().invoke(main, ["config", "check", "--config", str(config)])
    assert result.exit_code == 78
    assert "nothing.pub can't be read" in result.output

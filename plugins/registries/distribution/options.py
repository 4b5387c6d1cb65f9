"""The options of the ``distribution`` driver."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from crinoid.core.api.config import AbsolutePath, DriverConfig, Form


class DistributionOptions(DriverConfig):
    """What a slot of this driver may be told; the defaults reach any public registry."""

    config_paths: tuple[AbsolutePath, ...] = (Path("/etc/crinoid/certs.d"), Path("/etc/containerd/certs.d"))
    """Directories with `<registry>/hosts.toml`: mirrors and TLS. The first that has one for the registry counts."""

    docker_configs: tuple[Path, ...] = (Path("/etc/crinoid/registry/config.json"), Path("~/.docker/config.json"))
    """Docker configuration files with the node's own credentials. The first that has some for the host counts."""

    plain_http: tuple[Annotated[str, Form(r"[^\s/]+", "host or host:port, such as registry.example:5000")], ...] = ()
    """Registries (`host` or `host:port`) that are asked by http instead of https."""

    tries: Annotated[int, Field(ge=1, le=20)] = 5
    """How often a host is asked that gives no answer, is overloaded or breaks off."""

    backoff_s: Annotated[float, Field(gt=0, le=60)] = 0.5
    """The wait before the second try; it doubles with every further one, with jitter, up to 30 seconds."""

    patience_s: Annotated[float, Field(gt=0)] = 120.0
    """How long after the first try another round of tries may begin; progress of a stream starts it anew."""

    dial_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """How long a connection may take to come about; `dial_timeout` of a hosts.toml goes before it."""

    stall_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """How long a host may send nothing before the connection is given up."""

    max_streams: Annotated[int, Field(ge=1, le=64)] = 16
    """How many blobs this slot streams at once; a wait for a place counts towards the deadline of open_blob."""

    connections_per_blob: Annotated[int, Field(ge=1, le=16)] = 1
    """Over how many connections a large blob is fetched, in ranges, where servers limit each connection. Each takes a
    place of `max_streams`, all but the first only a free one, and holds a range in memory."""

    range_bytes: Annotated[int, Field(ge=1 << 20, le=256 << 20)] = 8 << 20
    """How long such a range is, in bytes; a blob of less than two of them is fetched over one connection."""

    helper_timeout_s: Annotated[float, Field(gt=0)] = 20.0
    """How long a credential helper may take."""

    user_agent: Annotated[str, Form("[ -~]*", "a line of printable ASCII")] = ""
    """The User-Agent header; empty: crinoid and its version."""

"""The committed stubs are what the pinned compiler makes of the .proto files, byte for byte."""

import runpy
from importlib.metadata import version
from pathlib import Path

import pytest

from crinoid.core.cri.wire import api_pb2_grpc

ROOT = Path(__file__).parents[5]
COMMITTED = ROOT / "core" / "cri" / "wire"
STUBS = ["api_pb2.py", "api_pb2.pyi", "api_pb2_grpc.py", "node_explain_pb2.py", "node_explain_pb2.pyi"]
STUBS += ["node_images_pb2.py", "node_images_pb2.pyi"]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    generate = runpy.run_path(str(ROOT / "tools" / "generate_wire.py"))["generate"]
    return {path.name: path for path in generate(tmp_path_factory.mktemp("wire"))}


def test_compiler_is_the_one_the_stubs_name() -> None:
    assert version("grpcio-tools") == api_pb2_grpc.GRPC_GENERATED_VERSION, "install the dev group's pins"


@pytest.mark.parametrize("name", STUBS)
def test_committed_stub_equals_a_fresh_one(fresh: dict[str, Path], name: str) -> None:
    assert fresh[name].read_bytes() == (COMMITTED / name).read_bytes(), f"{name} is stale: run `make proto`"


def test_no_other_stub_is_generated_or_committed(fresh: dict[str, Path]) -> None:
    assert sorted(fresh) == STUBS
    assert sorted(path.name for path in COMMITTED.glob("*_pb2*.py*")) == STUBS

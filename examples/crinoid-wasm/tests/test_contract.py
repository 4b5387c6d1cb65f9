"""The contract of crinoid's runtime role, applied to this driver, and what is its own."""

import asyncio
import signal
from pathlib import Path
from typing import Any, ClassVar

import pytest
from crinoid_wasm import WasmOptions, WasmRuntime, samples

from crinoid.core.api.errors import RuntimeRefused, Unsupported
from crinoid.core.api.host import Host
from crinoid.core.api.testing.runtimes import (
    ENDS,
    LASTS,
    SPEAKS_AND_FAILS,
    BoundRuntime,
    RuntimeContract,
    Workbench,
    joined_text,
)
from crinoid.core.api.values.runtime import ContainerRequest, ContainerStatus


class TestWasm(RuntimeContract):
    has_shell = False
    has_seccomp = False
    has_exec = False
    has_streams = False
    has_user_namespaces = False
    programs: ClassVar = {LASTS: ("/sleeps.wasm",), ENDS: ("/ends.wasm",), SPEAKS_AND_FAILS: ("/speaks.wasm",)}
    options = WasmOptions()

    def make_driver(self, host: Host) -> object:
        return WasmRuntime(self.options, host)

    def build_rootfs(self, directory: Path) -> Path:
        directory.mkdir()
        for name in ("sleeps", "ends", "traps", "grows", "tells", "spins", "reads_volume"):
            (directory / f"{name}.wasm").write_bytes(getattr(samples, name.upper()))
        (directory / "speaks.wasm").write_bytes(samples.SPEAKS_AND_FAILS)
        (directory / "rubbish.wasm").write_bytes(b"\x7fELF rubbish")
        (directory / "out.wasm").symlink_to("/etc/passwd")
        return directory

    async def run(self, bench: Workbench, *args: str, **changes: Any) -> tuple[int, ContainerRequest]:
        request = await bench.start(*args, **changes)
        return (await bench.runtime.wait(request.handle)).exit_code, request

    async def test_arguments_and_environment(self, bench: Workbench) -> None:
        process = {"args": ["tells.wasm", "one", "two"], "env": ["A=b=c"], "user": {"uid": 1000, "gid": 1000}}
        code, request = await self.run(bench, process=process)
        assert code == 0
        assert joined_text(request.log_path or Path()) == "one\0two\nA=b=c\n"

    async def test_a_volume(self, bench: Workbench) -> None:
        volume = bench.directory / "volume"
        volume.mkdir()
        (volume / "hello").write_text("from the volume\n")
        request = bench.request("/reads_volume.wasm")
        request.spec["mounts"].append(
            {"destination": "/data", "type": "bind", "source": str(volume), "options": ["rbind", "ro"]}
        )
        await bench.runtime.create(request)
        await bench.runtime.start(request.handle)
        await bench.runtime.wait(request.handle)
        assert joined_text(request.log_path or Path()) == "from the volume\n"

    async def test_a_trap_is_an_end_with_words(self, bench: Workbench) -> None:
        code, request = await self.run(bench, "/traps.wasm")
        assert code == 134
        assert "unreachable" in joined_text(request.log_path or Path(), "stderr")

    async def test_a_module_can_not_grow_beyond_the_containers_memory(self, bench: Workbench) -> None:
        codes = [
            (await self.run(bench, "/grows.wasm", resources={"memory": {"limit": limit << 20}}))[0]
            for limit in (48, 512)
        ]
        assert codes == [1, 0]

    @pytest.mark.parametrize(("program", "words"), [("/rubbish.wasm", "exec format"), ("/no.wasm", "no such file")])
    async def test_what_is_no_module_is_refused(self, bench: Workbench, program: str, words: str) -> None:
        with pytest.raises(RuntimeRefused, match=words):
            await bench.create(program)

    async def test_no_link_leads_out_of_the_image(self, bench: Workbench) -> None:
        with pytest.raises(RuntimeRefused, match="no such file"):
            await bench.create("/out.wasm")

    async def test_a_terminal_is_refused(self, bench: Workbench) -> None:
        with pytest.raises(Unsupported, match="no terminal"):
            await bench.create("/ends.wasm", terminal=True)

    async def test_a_stop_by_signal(self, bench: Workbench) -> None:
        request = await bench.start(*LASTS)
        await bench.until(lambda: joined_text(request.log_path or Path()) == "ready\n", "it runs")
        await bench.runtime.kill(request.handle, signal.SIGTERM)
        assert (await bench.runtime.wait(request.handle)).exit_code == 143

    async def test_a_rotated_log(self, bench: Workbench) -> None:
        request = await bench.start(*LASTS)
        log = request.log_path or Path()
        await bench.until(lambda: joined_text(log) == "ready\n", "it runs")
        log.rename(log.with_suffix(".old"))
        await asyncio.gather(*(bench.runtime.reopen_log(request.handle) for _ in range(3)))
        assert log.read_text() == ""
        assert list(request.handle.bundle.glob("reopen-*")) == []

    @pytest.mark.parametrize("options", [WasmOptions(fuel=100_000), WasmOptions(max_run_s=0.05)], ids=["fuel", "time"])
    async def test_a_module_that_never_ends_is_ended(self, bench: Workbench, host: Host, options: WasmOptions) -> None:
        bench.runtime = BoundRuntime(WasmRuntime(options, host))
        code, request = await self.run(bench, "/spins.wasm")
        assert code == 134
        assert "fuel" in joined_text(request.log_path or Path(), "stderr") or options.max_run_s
        assert (await bench.runtime.state(request.handle)).status is ContainerStatus.STOPPED

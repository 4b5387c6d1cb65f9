# Two commands do all the set-up on a machine that has Debian, Python and root:
#   make demo   a real pod, told as a story; it says what it installs
#   make test   linters and every test
# and one runs the suite of CRI tests against Debian's containerd, to see that what we say of it is still true:
#   make test-peers
# and one builds a node twice, compares the bytes, and installs, upgrades and downgrades it in an empty Debian: make test-site
# and two run tests in a virtual machine with cgroup v2 and AppArmor, emulated and so slow (see tests/vm/run.py):
#   make test-vm-short   the most telling ones, in less than ten minutes
#   make test-vm         every test of real containers; hours, in which it can be interrupted and started again
# and one boots pods of examples/crinoid-microvm in virtual machines, emulated, too: make test-microvm
# One runs the unit and the systemd cgroup driver in such a machine with systemd: make test-systemd, in half an hour;
# with CLUSTER_BINARIES=DIR over a kubelet, too. The same in namespaces of this machine, with cgroup v1 and at its own
# speed: make test-systemd-here, in minutes
# One runs a kubelet over crinoid, from binaries that you have: make test-cluster CLUSTER_BINARIES=DIR (a directory with
# kubelet, and what a cluster needs besides), and with CLUSTER_RUNTIME=containerd over Debian's containerd, to see that
# pods end in the same words; with CLUSTER_WORDS=docs/words.json these are kept for docs/words.md
# One lets thousands of pods live and looks whether the daemon grows: make soak (SOAK="--lives 500" for fewer)
# One runs the contracts of all roles with each driver in another process, as a slot with isolation has it: make test-isolated
# One measures how far a reader of the code has to go: make reading
# One kills, breaks and cuts the power of daemons at every point of their work; hours, as root, in which it can be
# interrupted and started again: make chaos (CHAOS="--workers 4" for four nodes at a time)
# Two measure, beside containerd in one run; BENCH takes more options, such as --containerd PROGRAM (--help names all):
#   make bench         every figure at 50 pods and how each grows, into docs/performance.md; under half an hour
#   make bench-cluster a Deployment under a kubelet, from binaries that are named: CLUSTER_BINARIES=DIR
#   make bench-quick   small and few, in under two minutes
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.crinoid-installed
# Much of the tests' time is waiting. A file's tests stay in one worker, which shares its daemon among them; those marked
# "alone" run while the other workers stand still (tests/support/turns.py). WORKERS=1 runs all tests one after another.
WORKERS ?= 4
PARALLEL = -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: bench bench-cluster bench-quick chaos chaos-kill chaos-fail chaos-power demo demo-packages test test-cluster test-isolated test-peers test-site test-systemd test-systemd-here test-vm test-vm-short test-microvm soak reading lint unit proto docs setup packages bytecode clean

demo: demo-packages bytecode
	$(BIN)/crinoid demo

demo-packages:
	@sh tools/install_packages.sh demo

test: setup lint
	$(BIN)/pytest $(PARALLEL)

test-cluster: setup
	CLUSTER_BINARIES=$(CLUSTER_BINARIES) $(BIN)/pytest tests/cluster

test-site: setup
	sh tools/try_site.sh

test-peers: setup
	$(BIN)/pytest tests/conformance --cri-peer containerd
	$(BIN)/pytest tests/peers

test-vm: setup
	$(BIN)/python tests/vm/suite.py tests/integration tests/conformance tests/contract

test-systemd: setup
	CLUSTER_BINARIES=$(CLUSTER_BINARIES) $(BIN)/python tests/vm/suite.py --systemd --results build/test-systemd.jsonl \
		tests/with_systemd

test-systemd-here: setup
	CLUSTER_BINARIES=$(CLUSTER_BINARIES) $(BIN)/python tests/vm/namespaces.py -- $(BIN)/pytest tests/with_systemd

test-isolated: setup
	$(BIN)/pytest $(PARALLEL) --isolated tests/contract

test-vm-short: setup
	$(BIN)/python tests/vm/suite.py --results build/test-vm-short.jsonl @tests/vm/short.txt

test-microvm: setup
	$(BIN)/python tests/vm/microvm.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: setup
	$(BIN)/pytest $(PARALLEL) tests/unit

chaos: chaos-kill chaos-fail chaos-power

chaos-kill: setup
	PYTHONPATH=tests $(BIN)/python -m chaos.failpoints --results build/chaos-kill.jsonl $(CHAOS)

chaos-fail: setup
	PYTHONPATH=tests $(BIN)/python -m chaos.failpoints --fail --results build/chaos-fail.jsonl $(CHAOS)

chaos-power: setup
	PYTHONPATH=tests $(BIN)/python -m chaos.power --lives 10

bench: setup
	PYTHONPATH=.:tests $(BIN)/python -m bench --json docs/performance.json --render $(BENCH)

bench-cluster: setup
	PYTHONPATH=.:tests $(BIN)/python -m bench.cluster --binaries $(CLUSTER_BINARIES) --json docs/performance-cluster.json --render $(BENCH)

bench-quick: setup
	PYTHONPATH=.:tests $(BIN)/python -m bench --quick $(BENCH)

soak: setup
	PYTHONPATH=tests $(BIN)/python -m chaos.soak $(SOAK)

reading: setup
	$(BIN)/python tools/measure_reading.py

proto: setup
	$(BIN)/python tools/generate_wire.py

docs: setup
	$(BIN)/python tools/generate_configuration.py
	$(BIN)/python tools/generate_conformance.py
	$(BIN)/python tools/generate_contract.py
	$(BIN)/python tools/generate_hooks.py
	$(BIN)/python tools/generate_metrics.py
	$(BIN)/python tools/api_surface.py

setup: packages bytecode

packages:
	@sh tools/install_packages.sh

bytecode: $(STAMP)
	@$(BIN)/python tools/compile_bytecode.py

$(STAMP): pyproject.toml tools/make_venv.sh
	@PYTHON="$(PYTHON)" sh tools/make_venv.sh $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

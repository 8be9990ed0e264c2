# `make run` and `make test` need Python 3.11 or newer, make and a network; everything else they
# fetch themselves, into .venv. `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BASELINE := proto/baseline.binpb
INTEROP := $(filter-out %-overrides.in,$(wildcard requirements/interop-*.in))
INTEROP_TINKER := $(patsubst requirements/interop-%.in,%,$(filter-out %-baseten-loops-0.32.0.in,$(INTEROP)))
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header

.DEFAULT_GOAL := help
.PHONY: help setup run serve test test-fast lint types format proto proto-check proto-baseline \
	interop-tinker interop-loops bench bench-dialect bench-kernels parity chaos compatibility kernels-aot \
	requirements test-go proto-go clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Install everything into .venv, and only that

# The stamp makes a second `make setup` a no-op.
$(READY): pyproject.toml scripts/setup.py $(wildcard requirements/*.txt)
	$(PYTHON) scripts/setup.py
	@touch $@

run: setup ## Start a gateway and fine-tune the default model through it: before, loss, after
	$(BIN)/python examples/quickstart.py

serve: setup ## Start a gateway on 127.0.0.1:7700 and keep it running
	$(BIN)/tinkergate serve

# A test of the default model must not be skipped for want of it.
test: lint types proto-check ## Run every check and every test
	TINKERGATE_REQUIRE_MODEL=1 $(BIN)/pytest --compatibility check

test-fast: setup ## Run the tests that do not need the default model
	$(BIN)/pytest -m "not slow"

# Each SDK has an environment of its own in .venv-interop; `make test` runs these tests too.
interop-tinker: setup ## Drive the official SDKs, unpatched, against the Tinker-dialect door
	$(BIN)/python scripts/interop_environments.py $(INTEROP_TINKER)
	TINKERGATE_REQUIRE_MODEL=1 $(BIN)/pytest tests/interop -s

# The SDK asks for Python 3.12; TINKERGATE_PYTHON312 may name one.
interop-loops: setup ## Drive the official Loops SDK and its Tinker shim, unpatched, against that door
	$(BIN)/python scripts/interop_environments.py baseten-loops-0.32.0
	TINKERGATE_REQUIRE_MODEL=1 TINKERGATE_REQUIRE_PYTHON312=1 $(BIN)/pytest tests/interop_loops -s

lint: setup ## Check style, formatting and the import rules between rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: setup ## Format the code and the contract
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format --write proto

types: setup ## Check types, strictly
	$(BIN)/mypy
	MYPYPATH=scripts $(BIN)/mypy scripts examples

proto: setup ## Generate the Python code of the contract
	$(BIN)/python scripts/generate_proto.py

proto-check: setup ## Check the contract: lint, format, compatibility, and that the code is its own
	$(BIN)/buf lint proto
	$(BIN)/buf format --diff --exit-code proto
	$(BIN)/buf breaking proto --against $(BASELINE)
	$(BIN)/python scripts/generate_proto.py --check

proto-go: setup ## Generate the Go code of the contract
	$(BIN)/python scripts/generate_go.py

# Needs Go, and is no part of `make test`. GOFLAGS may say how many programs build at once.
test-go: setup ## Check and test the Go client against a gateway of its own
	@command -v go >/dev/null || { echo "Go is not installed: there is no go on the PATH" >&2; exit 1; }
	$(BIN)/python scripts/generate_go.py --check
	cd clients/go && test -z "$$(gofmt -l . | tee /dev/stderr)"
	cd clients/go && go mod verify && go vet ./... && go test -count=1 ./...

proto-baseline: setup ## Take the contract as it is for the one to stay compatible with
	$(BIN)/buf build proto --exclude-source-info --output $(BASELINE)

bench: setup ## Measure the gateway's hop and the engine, against plain counterparts
	$(BIN)/python tests/bench/hop.py
	PYTHONPATH=tests/fixtures $(BIN)/python tests/bench/engine.py

bench-kernels: setup ## Measure the kernels' CPU path on the default model, against the rivals
	PYTHONPATH=tests/fixtures $(BIN)/python tests/bench/head.py

bench-dialect: setup ## Measure the way to a Tinker-dialect service, against the official SDK
	$(BIN)/python scripts/interop_environments.py tinker-0.38.0
	PYTHONPATH=tests/fixtures $(BIN)/python tests/bench/dialect.py

parity: setup ## Run one program over every backend from every door, and compare the losses
	$(BIN)/python scripts/interop_environments.py tinker-0.38.0 baseten-loops-0.32.0
	PYTHONPATH=tests/fixtures $(BIN)/python tests/parity/run.py

chaos: setup ## Mistreat every request between two gateways, and compare the weights
	PYTHONPATH=tests/fixtures $(BIN)/python tests/chaos/run.py --dialect tinker
	PYTHONPATH=tests/fixtures $(BIN)/python tests/chaos/run.py --dialect mint
	PYTHONPATH=tests/fixtures $(BIN)/python tests/chaos/run.py --dialect loops --capacity serverless
	PYTHONPATH=tests/fixtures $(BIN)/python tests/chaos/run.py --dialect loops --capacity dedicated

compatibility: setup ## Write docs/compatibility.md from the tests that prove it
	TINKERGATE_REQUIRE_MODEL=1 $(BIN)/pytest -m proves --compatibility write

kernels-aot: setup ## Compile the kernels for GPUs that need not be here, check it, write REPORT.md
	$(BIN)/python -m tinkergate_kernels.aot --report kernels/REPORT.md

requirements: setup ## Pin the newest versions of everything that is installed
	$(LOCK) --upgrade requirements/bootstrap.in --output-file requirements/bootstrap.txt
	$(LOCK) --upgrade pyproject.toml --all-extras --output-file requirements/dev.txt
	$(LOCK) --upgrade --no-deps requirements/model.in --output-file requirements/model.txt
	for list in $(INTEROP); do \
		case $$list in *baseten-loops*) python=3.12;; *) python=3.11;; esac; \
		$(LOCK:3.11=$$python) --upgrade --override requirements/interop-overrides.in \
			$$list --output-file $${list%.in}.txt || exit 1; \
	done

clean: ## Remove what was built; the environment and the model cache stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find clients examples gateway kernels scripts tests -name __pycache__ -prune -exec rm -rf {} +

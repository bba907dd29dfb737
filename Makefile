# Every target sets up what it needs, on a machine that has Python 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo dev test soak check bench runner-image clean

demo: $(VENV)/.synced ## the main job end to end, with embedded servers
	$(BIN)/skriptoteket demo

dev: $(VENV)/.synced ## the whole service on this machine
	$(BIN)/skriptoteket dev $(ARGS)

test: $(VENV)/.synced ## all but the long rounds; what needs Docker or Ceph says so when it is skipped
	@infra/build-runner-image.sh --if-possible
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

soak: $(VENV)/.synced ## the long rounds: minutes each
	@infra/build-runner-image.sh --if-possible
	$(BIN)/pytest -m soak -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/.synced ## style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy infra/runner/*.py infra/runner_sbom.py
	@for tool in infra/tools/*/tool.py; do $(BIN)/mypy --no-error-summary $$tool || exit 1; done
	$(BIN)/lint-imports --no-cache

bench: $(VENV)/.synced ## benchmarks: ratios against a baseline measured in the same run
	@infra/build-runner-image.sh --if-possible
	@for bench in tests/benchmarks/bench_*.py; do echo "== $$bench"; $(BIN)/python $$bench || failed=1; done; \
		exit $${failed:-0}

runner-image: ## the Docker image that tools run in
	infra/build-runner-image.sh

# uv comes by pip into the project's own environment, and then brings everything else.
$(VENV)/.synced: pyproject.toml uv.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv sync --frozen --all-extras --quiet
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-output .devdata

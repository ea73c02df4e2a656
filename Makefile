# Two commands matter: `make demo` shows ckptwatch at work, `make test` runs every check. Both install what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST_ARGS ?= -n 2
FUZZ_ARGS ?= --seconds 30
RELIABILITY_ARGS ?=

.PHONY: demo test test-long reliability check fuzz format bench bench-detection docs golden clean

$(VENV)/pip.stamp:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	touch $@

$(VENV)/base.stamp: $(VENV)/pip.stamp pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

$(VENV)/dev.stamp: $(VENV)/pip.stamp pyproject.toml constraints.txt
	$(PIP) -e . --group dev
	touch $@ $(VENV)/base.stamp

demo: $(VENV)/base.stamp ## train a small model that goes wrong on purpose, and watch ckptwatch find it
	$(BIN)/ckptwatch demo $(DEMO_ARGS)

check: $(VENV)/dev.stamp ## linters, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check ## every check and every test but the long tier
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m "not slow"

reliability: $(VENV)/dev.stamp ## kills, damage and a soak for hours; the figures go into docs/promises.md
	$(BIN)/python -m tests.faults $(RELIABILITY_ARGS)
	$(BIN)/python docs/generate.py

test-long: $(VENV)/dev.stamp ## the long tier
	$(BIN)/python -m pytest -m slow

fuzz: $(VENV)/dev.stamp ## damage checkpoints of every format at random, for a bounded time each
	$(BIN)/python -m tests.hostile.fuzz $(FUZZ_ARGS)

bench: $(VENV)/dev.stamp ## figures, as ratios measured in one run
	$(BIN)/python -m benchmarks

bench-detection: $(VENV)/dev.stamp ## faults found and false alarms, over real trainings; DETECTION_ARGS=--full for ten seeds
	$(BIN)/python -m benchmarks.detection $(DETECTION_ARGS)

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: $(VENV)/dev.stamp ## write the golden files anew; look at the difference before committing it
	CKPTWATCH_GOLDEN=write $(BIN)/python -m pytest -m "not slow" -k golden

docs: $(VENV)/dev.stamp ## write the generated parts of the documentation anew
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache

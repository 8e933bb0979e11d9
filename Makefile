# Everything lives in .venv: nothing is installed into the system.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test unit chaos bench check docs submit clean

demo: $(VENV)/ready
	$(BIN)/python -m jobs.demo

test: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Without Ray: under two minutes.
unit: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/unit

chaos: $(VENV)/ready
	$(BIN)/python -m pytest -m chaos

# All rows take 40 to 55 minutes; ARGS="decode planning", for two of them, three.
bench: $(VENV)/bench
	$(BIN)/python -m jobs.bench $(ARGS)

# To the job server of RAY_API_SERVER_ADDRESS, or the one on this machine's port 8265 (`ray dashboard`).
submit: $(VENV)/ready
	$(BIN)/ray job submit --working-dir . --runtime-env-json '{"excludes": ["tests", "demo"]}' \
		-- python -m jobs.label $(CONFIG) $(ARGS)

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The parts of docs/ that come from the code.
docs: $(VENV)/ready
	$(BIN)/python docs/generate.py

$(VENV)/ready: pyproject.toml constraints.txt
	@echo "installing into $(VENV): torch, Ray, transformers and what they need; some minutes, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[demo,test]"
	@touch $@

$(VENV)/bench: $(VENV)/ready
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[bench]"
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

# Every target is a thin door to qlab/bootstrap.py, which needs no make: python3 -m qlab.bootstrap lab
PYTHON ?= python3
PORT ?= 8888
N ?= 300
ARGS ?=

.PHONY: lab test check test-gpu test-extra bench fuzz clean python

lab: python
	@"$(PYTHON)" -m qlab.bootstrap lab --port $(PORT)

# ARGS goes to pytest or to the benchmarks: make test ARGS="-k formats"
test check test-gpu test-extra bench: python
	@"$(PYTHON)" -m qlab.bootstrap $@ $(ARGS)

# N changed submissions for the judge: make fuzz N=10000 takes half an hour on two cores
fuzz: python
	@"$(PYTHON)" -m qlab.bootstrap fuzz --count $(N) $(ARGS)

python:
	@command -v "$(PYTHON)" >/dev/null || { echo "qlab: $(PYTHON) is missing: install Python 3.11 or newer, or name yours: make lab PYTHON=python3.12" >&2; exit 1; }

# work/ is kept: your labs and progress live there
clean:
	rm -rf .venv .pytest_cache .ruff_cache artifacts build qlab.egg-info

# make run   answers a prompt with the default model:  make run PROMPT="Why is the sky blue?"
# make test  everything that is checked before a change lands
# make audit holds the dependencies against known advisories (needs the network)
# make dist  builds the sdist, the wheel and the bill of materials, the same bytes each time
# make bench measures this machine beside mlx-lm and llama.cpp (hours), and writes docs/performance.md
PYTHON ?= python3
# Not ?=, which would take an unrelated PROMPT from the environment.
PROMPT = In one short paragraph, why is the sky blue?
# The best model that is installed, or else the small one.
MODEL = default
# Handed over in the environment, so that quotes and dollars in a prompt reach neither make nor the shell.
export RUN_PROMPT := $(value PROMPT)
export RUN_MODEL := $(value MODEL)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: run test bench dist lint format openblas lock audit clean

run: $(VENV)/.installed openblas
	@$(BIN)/rvllm run -- "$$RUN_MODEL" "$$RUN_PROMPT"

test: $(VENV)/.installed-dev openblas lint
	@# Three at a time, each with one thread of BLAS: many tests wait, and few compute for long.
	@# In the folders' order the long files do not come last, when nobody shares the work.
	@# Bytecode is kept: hundreds of processes are started, and each would compile all modules.
	env -u PYTHONDONTWRITEBYTECODE OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p rvllm_local

bench: $(VENV)/.installed-dev openblas
	$(BIN)/python -m benchmarks.beside_peers
	$(BIN)/python -m benchmarks.page

dist: $(VENV)/.installed-dev
	@$(BIN)/python -m scripts.dist

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

openblas: $(VENV)/.installed
	@$(BIN)/python scripts/provide_openblas.py

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; try: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "python3 cannot make a virtual environment; on Debian: apt install python3-venv" >&2; exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable ".[dev]"
	@touch $@

lock: $(VENV)/.installed-dev
	@{ echo "# Exact versions of everything that is installed; made by make lock."; \
		$(BIN)/python -m pip --disable-pip-version-check freeze --exclude-editable --all \
		| grep -v -i -E '^(pip|rvllm)'; } > constraints.new && mv constraints.new constraints.txt

# In an environment of its own, so that it adds nothing to what it looks at.
audit: $(BIN)/python
	@$(BIN)/python -m venv $(VENV)-audit
	@$(VENV)-audit/bin/python -m pip --disable-pip-version-check install --quiet pip-audit \
		|| { echo "pip-audit cannot be fetched: an audit needs the network" >&2; exit 1; }
	@$(VENV)-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip \
		--progress-spinner off --format json 2>/dev/null | $(BIN)/python -m scripts.audit

clean:
	rm -rf $(VENV) $(VENV)-audit build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

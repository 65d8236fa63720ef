# On a new machine, `make demo` and `make test` need no other command.
# `make VENV=path/to/environment` uses an existing environment. PYTHON=... selects the interpreter of a new environment;
# the default is the newest installed Python from 3.11 to 3.14.

VENV ?= .venv
PYTHON ?=
RUN = $(VENV)/bin/python
# Number of test processes, with one thread each; a process needs up to 5 GB of memory.
JOBS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --dist worksteal

.PHONY: setup demo demo-model test test-all bench docs sanitize fuzz fuzz-aarch64

setup:
	@test -x $(RUN) || { python=$$(sh tools/find_python.sh $(PYTHON)) && "$$python" -m venv $(VENV); }
	@$(RUN) -m pip --version > /dev/null 2>&1 || $(RUN) -m ensurepip > /dev/null || { echo "error: $(VENV) has no" \
		"pip. Fix: install pip into it, or remove it so that it is made anew" >&2; exit 2; }
	@$(RUN) tools/install.py
	@$(RUN) -m regionclip.doctor

demo: setup
	$(RUN) tools/demo.py

# The full recipe on the synthetic dataset of emoji scenes; hours on a laptop, resumable.
demo-model: setup
	PYTHON=$(RUN) bash tools/train_emoji.sh

test: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(PYTEST) -m "not slow"

test-all: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(PYTEST)

# Benchmarks, each against the plain baseline in the same run; some minutes, on an otherwise idle machine.
bench: setup
	$(RUN) benchmarks/ops.py
	$(RUN) benchmarks/head.py
	$(RUN) benchmarks/e2e.py --json
	$(RUN) benchmarks/e2e.py --boxes gt --json
	$(RUN) benchmarks/e2e.py --model emoji --json
	$(RUN) benchmarks/eval.py
	$(RUN) benchmarks/pretrain_data.py

# Run the operators under address and undefined-behavior sanitizers.
sanitize: setup
	bash tests/sanitize.sh $(RUN)

# Ten minutes of coverage-guided fuzzing for each operator; needs clang.
fuzz:
	bash tests/fuzz/run.sh 600

# The loops for aarch64 (NEON), compiled, and run on random bytes under emulation; needs a cross compiler and qemu.
fuzz-aarch64:
	bash tests/fuzz/aarch64.sh

# The pages and the Python API as a website in build/site; warnings are errors. Needs the extra [docs].
docs:
	$(RUN) -m mkdocs build

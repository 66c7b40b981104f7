# Two commands set everything up: make demo, make test. Only Python 3.11 or newer and make are needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The CPU build of torch, so that installing never draws in several GB of CUDA packages. Elsewhere than on
# Linux, and with TORCH set to something else, pip's own choice is taken.
TORCH ?= torch==2.13.0

EXTRAS := encode,compare,serve,redis,export,index,track,mlflow,wandb,hub,tune,cluster

.PHONY: demo test test-all test-lowest test-newest lint format docs linkcheck figures dist dist-extras bench clean

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@$(BIN)/python scripts/install.py --upgrade pip
	@$(BIN)/python scripts/install.py --constraint constraints.txt "$(TORCH)"
	@$(BIN)/python scripts/install.py --constraint constraints.txt --editable ".[$(EXTRAS)]" --group dev
	@touch $@

demo: $(VENV)/.ready
	@$(BIN)/hafvt demo --out demo

# Two processes share the tests, file by file, as many tests wait for processes of their own. `make test` leaves
# out what is slow, needs a browser, several processes or Ray; `make test-all`, which .ci/run calls, runs everything and prints the coverage.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test: $(VENV)/.ready
	$(PYTEST) -m "not slow and not browser and not distributed and not ray"

# The lowest versions that pyproject.toml names, and the newest of all, each in an environment of its own. torch has
# variables of its own, as only some indexes have its old CPU builds.
LOWEST_TORCH ?= $(TORCH)
NEWEST_TORCH ?= $(TORCH)
test-lowest test-newest: test-%:
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --upgrade pip uv
	.venv-$*/bin/python -m pip install --quiet "$(if $(filter lowest,$*),$(LOWEST_TORCH),$(NEWEST_TORCH))"
	.venv-$*/bin/python -c "from importlib.metadata import version; print('torch==' + version('torch'))" > .venv-$*/torch.txt
	.venv-$*/bin/uv pip install --quiet --python .venv-$*/bin/python --upgrade --override .venv-$*/torch.txt \
		--resolution $(if $(filter lowest,$*),lowest-direct,highest) --editable ".[$(EXTRAS)]" --group test
	$(MAKE) test-with VENV=.venv-$*

.PHONY: test-with
test-with:
	$(PYTEST) -m "not slow and not browser and not distributed and not ray"

test-all: $(VENV)/.ready
	@test -x /usr/bin/chromium || echo "no /usr/bin/chromium: apt-get install --no-install-recommends chromium"
	$(PYTEST) --cov --cov-report=term

LINTED := src tests benchmarks docs scripts
lint: $(VENV)/.ready
	$(BIN)/ruff check $(LINTED)
	$(BIN)/ruff format --check $(LINTED)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.ready
	$(BIN)/ruff check --fix $(LINTED)
	$(BIN)/ruff format $(LINTED)

# The site, in build/docs. Every warning is an error: a broken link within the site, to a file of the repository, or to a heading.
docs: $(VENV)/.ready
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/docs

# Links to other sites; needs a network.
linkcheck: $(VENV)/.ready
	$(BIN)/python -m sphinx --quiet --builder linkcheck docs build/linkcheck

# The tables of README and docs, from benchmarks/results.
figures: $(VENV)/.ready
	$(BIN)/python benchmarks/figures.py

# Builds wheel and sdist, and tries the wheel in a clean environment without extras, outside of this folder.
dist: $(VENV)/.ready
	rm -rf dist build/wheel
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip install --quiet --constraint constraints.txt "$(TORCH)" dist/*.whl
	cd build/wheel && bin/python -I ../../tests/try_wheel.py

# Tries the wheel with each extra alone, each in an environment of its own.
dist-extras: dist
	@for extra in $$(sed -n '/^\[project.optional/,/^$$/s/^\([a-z]*\) =.*/\1/p' pyproject.toml); do \
		rm -rf build/extra && $(PYTHON) -m venv build/extra && \
		build/extra/bin/python -m pip install --quiet --constraint constraints.txt "$(TORCH)" "$$(ls dist/*.whl)[$$extra]" && \
		(cd build/extra && bin/python -I ../../tests/try_wheel.py $$extra ..) || exit 1; \
	done

# The peers get environments of their own under WORK; SHARED holds the real data. Takes a day, of which
# study.py and tuned.py make only what is not among their committed results.
SHARED ?= ../shared/data
WORK ?= $(or $(TMPDIR),/tmp)/hafvt-bench
bench: $(VENV)/.ready
	mkdir -p "$(WORK)"
	$(BIN)/python benchmarks/softmax.py
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/peers.py --shared "$(SHARED)" --work "$(WORK)"
	$(BIN)/python benchmarks/sampled_peers.py --work "$(WORK)"
	$(BIN)/python benchmarks/plain.py --shared "$(SHARED)" --work "$(WORK)"
	$(BIN)/python benchmarks/accuracy.py --shared "$(SHARED)" --work "$(WORK)/accuracy"
	$(BIN)/hafvt train hafvt --data "$(WORK)/accuracy/data/movielens-posters" --out "$(WORK)/served" \
		--epochs 8 --patience 0 --test false --resume
	$(BIN)/python benchmarks/load.py "$(WORK)/served"
	$(BIN)/python benchmarks/cold.py --shared "$(SHARED)" --work "$(WORK)/cold"
	$(BIN)/python benchmarks/study.py --shared "$(SHARED)" --work "$(WORK)/study"
	$(BIN)/python benchmarks/tuned.py --shared "$(SHARED)" --work "$(WORK)/tuned"
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/steps.py
	$(BIN)/python benchmarks/processes.py
	$(BIN)/python benchmarks/prepare.py
	$(BIN)/python benchmarks/million.py --work "$(WORK)/million"
	$(BIN)/python benchmarks/external.py --shared "$(SHARED)" --work "$(WORK)/external"

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest build dist demo

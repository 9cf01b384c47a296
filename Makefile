# `make` prints the targets. Everything runs in .venv, made on first use; `make VENV= …` uses the active environment.

PROFILE   ?= auto
NOTEBOOKS ?=
CLAIMS    ?=
DATA      ?=
DATASET   ?=
JOBS      ?=
PROCESSES ?=
ENGINE    ?=
ADDRESS   ?=
GPUS      ?=
DETERMINISTIC ?=
DRY_RUN   ?= $(CONTRASTIVE_DRY_RUN)
OPTIONS   ?=
SEED      ?= 0
FROM      ?=
INTO      ?=
WEIGHTS   ?=
FOLDER    ?=
FORCE     ?=
NBGRADER  ?=
VENV      ?= .venv
PYTHON    ?= python3
PORT      ?= 8000

PROFILES := smoke cpu gpu paper reference long
SHELL    := /bin/bash
MAKEFLAGS += --no-print-directory --no-builtin-rules
.DEFAULT_GOAL := help

wanted := $(or $(filter-out auto,$(PROFILE)),$(CONTRASTIVE_PROFILE),auto)
ifeq ($(filter $(wanted),auto $(PROFILES)),)
$(error Unknown PROFILE '$(wanted)': expected one of auto $(PROFILES))
endif
# For a shell, whatever it holds.
quoted = '$(subst ','\'',$(1))'

# As Python prints it, or the results would lie in another folder than is looked into.
ifeq ($(shell printf '%s' $(call quoted,$(SEED)) | grep -xE '0|[1-9][0-9]*'),)
$(error SEED is '$(SEED)': expected a whole number of at least 0, written plainly, such as 0, 1 or 23)
endif
# auto, as in companion.course.profiles: CONTRASTIVE_PROFILE; else gpu on a GPU of a data centre, told by its GiB of memory; else cpu
DATA_CENTRE := 36
profile := $(or $(filter-out auto,$(wanted)),$(shell nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null | awk 'NR == 1 && $$1 + 0 >= $(DATA_CENTRE) * 1024 {found = "gpu"} END {print found ? found : "cpu"}'))

# What overrides a profile's own settings goes to a results folder of its own (companion.course.profiles names it).
slug   := $(shell printf '%s' $(call quoted,$(DATASET)) | sed 's|^imagefolder:||; s|/*$$||; s|.*/||' | tr 'A-Z' 'a-z' | tr -sc 'a-z0-9' '-' | sed 's/^-//; s/-$$//')
ifneq ($(DATASET),)
ifeq ($(slug),)
$(error DATASET is '$(DATASET)', a name with neither a letter from a to z nor a digit, by which its results are found: rename it, or name a link to it)
endif
endif
folder := results/$(patsubst long,reference/cpu-long,$(profile:reference=reference/cpu))$(if $(slug),-$(slug))$(if $(filter-out 0,$(SEED)),-seed$(SEED))

all    := $(sort $(basename $(notdir $(wildcard notebooks/*.ipynb))))
ledger := companion/ledger/claims.yaml
# The notebooks that test the claims named, or those below them: `id:` and `notebook:` stand in this order in each entry.
tests   = $(or $(shell awk -v id=$(call quoted,$(1)) '$$1=="-" && $$2=="id:" {on=index($$3 ".", id ".")==1} on && $$1=="notebook:" && !said[$$2]++ {print $$2}' $(ledger)),$(error Unknown claim '$(1)': $(ledger) has the ids))
named  := $(NOTEBOOKS) $(foreach c,$(CLAIMS),$(call tests,$(c)))
chosen := $(sort $(if $(strip $(named)),$(foreach n,$(named),$(or $(filter $(n)%,$(all)),$(error Unknown notebook '$(n)': expected one of $(all)))),$(all)))
executed   = $(addprefix $(folder)/notebooks/,$(addsuffix .ipynb,$(1)))
scoreboard := $(filter %_scoreboard,$(all))

bin := $(if $(VENV),$(VENV)/bin/)
py  := $(if $(VENV),$(bin)python,python)
ready := $(if $(VENV),$(VENV)/.ready)

export CONTRASTIVE_DATA := $(or $(DATA),$(CONTRASTIVE_DATA))
export CONTRASTIVE_JOBS := $(or $(JOBS),$(CONTRASTIVE_JOBS))
export CONTRASTIVE_PROCESSES := $(or $(PROCESSES),$(CONTRASTIVE_PROCESSES))
export CONTRASTIVE_ENGINE := $(or $(ENGINE),$(CONTRASTIVE_ENGINE))
export CONTRASTIVE_ADDRESS := $(or $(ADDRESS),$(CONTRASTIVE_ADDRESS))
export CONTRASTIVE_GPUS := $(or $(GPUS),$(CONTRASTIVE_GPUS))
export CONTRASTIVE_DETERMINISTIC := $(or $(DETERMINISTIC),$(CONTRASTIVE_DETERMINISTIC))
export CONTRASTIVE_RESULTS := $(CURDIR)/results
export OMP_NUM_THREADS := $(or $(OMP_NUM_THREADS),1)# two notebooks run at once: threads of one would wait for those of the other
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup lab reproduce reference merge notebooks test lint freeze book serve student slides bench speedrun clean

help: ## print this help
	@echo "make TARGET [PROFILE=auto] [NOTEBOOKS='08 09'] [CLAIMS='id …'] [DATA=folder] [DATASET=name] [JOBS=n] [PROCESSES=n] [ENGINE=loky] [ADDRESS=host:port] [GPUS=n] [DETERMINISTIC=1] [DRY_RUN=1] [SEED=0] [VENV=.venv] [PYTHON=python3]"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  PROFILE    auto $(PROFILES); auto is what CONTRASTIVE_PROFILE says, else gpu on a GPU of $(DATA_CENTRE) GiB or more, else cpu"
	@echo "  NOTEBOOKS  numbers of notebooks to run; default: all"
	@echo "  CLAIMS     ids of claims, or what several begin with up to a dot: run the notebooks that test them"
	@echo "  DATA       folder with data sets that you have already"
	@echo "  DATASET    a data set in place of the profile's own, such as cifar10 or imagefolder:FOLDER"
	@echo "  JOBS       runs that are trained at once; default: one a core, or one on a GPU"
	@echo "  PROCESSES  processes that train a run together, with a GPU each if it uses any; default: 1"
	@echo "  ENGINE     what trains the runs: loky, processes of this machine, the default; or a ray or dask cluster"
	@echo "  ADDRESS    of that cluster; default: one of this machine, for each sweep"
	@echo "  GPUS       GPUs of the cluster that a run takes, such as 0.5; default: one a process, where a run uses any"
	@echo "  FROM       of merge: a results folder, here or user@host:path; INTO: the recorded results that it goes to; WEIGHTS=1: fetch them too"
	@echo "  DETERMINISTIC  1: only algorithms that repeat their results bit by bit on the same device"
	@echo "  DRY_RUN    1: of reproduce and reference: count the runs and estimate the hours; train nothing, write nothing"
	@echo "  SEED       added to every seed of the profile; other than 0: results in a folder of their own; default: 0"
	@echo "  FORCE      1: of student: overwrite notebooks in which somebody has written"
	@echo "  VENV       the environment that everything runs in, made on first use; default: .venv; VENV= takes the active one"
	@echo "  PYTHON     the Python that makes it, 3.11 or newer; default: python3"

setup: $(ready) ## make .venv and install the package with its tools

everything := -e '.[train,course,oracles,book,browser,dev]'

# A version that was tested can be withdrawn by its authors: that must not keep anyone from starting.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1): Python 3.11 or newer is needed; name one with PYTHON=…" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(bin)pip install -q -c constraints.txt $(everything) || \
	  { echo "Not every version in constraints.txt can be had (above). Now the newest ones that pyproject.toml allows, untested together:" >&2; \
	    $(bin)pip install -q $(everything); }
	@touch $@

lab: $(ready) ## open the notebooks in JupyterLab; FOLDER=build/student: those without solutions
	$(bin)jupyter lab '$(or $(FOLDER),notebooks)'

# Make hands SIGTERM on to what it started, a shell does not: what takes long runs in its shell's place, by `exec`.
asked = $(CONTRASTIVE_JOBS)$(CONTRASTIVE_PROCESSES)$(CONTRASTIVE_ENGINE)$(CONTRASTIVE_ADDRESS)$(CONTRASTIVE_GPUS)
these = notebooks PROFILE=$(profile) NOTEBOOKS='$(chosen)' CLAIMS=
estimate := $(py) -m companion.course.estimate $(chosen:%=notebooks/%.ipynb) --profile $(profile) --dataset $(call quoted,$(DATASET)) --seed $(SEED)

reproduce: $(ready) ## execute the notebooks and print the scoreboard; DRY_RUN=1: say what that costs, and do nothing
ifneq ($(filter-out 0,$(DRY_RUN)),)
	@$(estimate)
else
	$(if $(strip $(asked)),@$(py) -c 'from companion.training import engines; exit(engines.check())')
	$(if $(filter gpu paper,$(profile)),@-$(estimate))
	-@exec $(MAKE) -k -j 2 $(these)
	-@$(py) -m companion.course.report --profile $(profile) --dataset $(call quoted,$(DATASET)) --seed $(SEED)
	@$(if $(findstring n,$(filter-out --%,$(firstword -$(MAKEFLAGS)))),:,$(MAKE) --question $(these)); status=$$?; \
	  [ $$status = 0 ] || echo "Some notebooks failed (above); the scoreboard shows what the others, and earlier runs, have filed." >&2; \
	  echo "Notebooks: $(folder)/notebooks/   Scoreboard: $(folder)/scoreboard.html"; exit $$status
endif

reference: ## record the experiments of `cpu` with ten seeds in results/reference/: hours; resumes; PROFILE=long: trained longer
	@exec $(MAKE) reproduce PROFILE=$(or $(filter long,$(profile)),reference) CLAIMS= \
	  NOTEBOOKS='$(if $(strip $(named)),$(chosen),$(if $(filter long,$(profile)),08 09 13,02 03 04 05 07 08 09 10 11 12))'

merge: $(ready) ## add what another machine computed to results/reference/: FROM=user@host:path/to/results INTO=gpu
	@$(py) -m companion.course.merge $(if $(WEIGHTS),--weights) -- $(call quoted,$(FROM)) $(call quoted,$(INTO))

notebooks: $(call executed,$(chosen))

# What is recorded is shown by notebooks of other profiles, and decides.
recorded := $(filter-out $(folder)/%,$(wildcard results/reference/*/runs.csv results/reference/*/claims.json))

$(folder)/notebooks/%.ipynb: notebooks/%.ipynb $(recorded) $(wildcard companion/*.py companion/*/*.py companion/*/*/*.py companion/*/*.yaml data/*.jpg data/*.webp data/*.tsv)
	@exec $(py) -m companion.course.execute $< --profile $(profile) --dataset $(call quoted,$(DATASET)) --seed $(SEED)

# What 05 says of all recorded networks waits until the others have recorded theirs.
ifeq ($(profile),reference)
wide := 05_alignment_uniformity
$(call executed,$(filter $(wide),$(chosen))): $(call executed,$(filter-out $(wide) $(scoreboard),$(chosen)))
endif

# The scoreboard reads what the other notebooks have filed.
$(call executed,$(scoreboard)): $(call executed,$(filter-out $(scoreboard),$(chosen)))

-include $(wildcard $(folder)/notebooks/*.d)

lint: $(ready) ## check the format of code and notebooks
	$(bin)ruff format --check .
	$(bin)ruff check .

# Two files at a time, in this order: long ones first, so that neither process waits for the other at the end. The scoreboard and the
# verdicts read what all the notebooks have filed.
test: lint ## run every test, the committed notebooks included (always at the cpu profile)
	CONTRASTIVE_PROFILE=cpu CONTRASTIVE_PROGRESS=off $(py) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --nbval-lax \
	  $(filter-out notebooks/$(scoreboard).ipynb,$(wildcard notebooks/*.ipynb)) $(filter-out tests/ledger/,$(sort $(wildcard tests/*/)))
	CONTRASTIVE_PROFILE=cpu CONTRASTIVE_PROGRESS=off $(py) -m pytest --nbval-lax notebooks/$(scoreboard).ipynb tests/ledger

freeze: $(ready) ## re-execute the committed notebooks at the cpu profile, in place; their pictures go to docs/
	@for name in $(chosen); do $(py) -m companion.course.execute notebooks/$$name.ipynb --freeze || exit 1; done
	@mkdir -p docs && cp results/cpu/*.png docs/

book: $(ready) ## build the site from the committed notebooks, which it does not execute: build/book/index.html
	$(py) -m sphinx -q -n -W --keep-going -j auto -d build/doctrees book build/book

serve: book ## show the site on this machine alone: http://localhost:8000, or PORT
	$(py) -m http.server --bind 127.0.0.1 --directory build/book $(PORT)

student: $(ready) ## write build/student/: the notebooks without solutions and outputs; NBGRADER=1: nbgrader's sources
	@$(py) -m companion.course.student $(chosen:%=notebooks/%.ipynb) $(if $(FORCE),--force) $(if $(NBGRADER),--nbgrader --out build/nbgrader/source)

slides: $(ready) ## write build/slides/: a deck for each notebook, to be opened without a network
	@$(py) -m companion.course.slides $(chosen:%=notebooks/%.ipynb)

bench: $(ready) ## measure speed and memory of the losses and speed of the training, alone and several at once, as ratios
	$(py) -m companion.bench
	$(py) -m companion.bench.training
	$(py) -m companion.bench.together

speedrun: $(ready) ## time SimCLR on CIFAR-10 to 90 % k-NN accuracy, on a GPU; OPTIONS=--dry-run: tiny, on the CPU
	$(py) -m companion.bench.speedrun $(if $(DATASET),--dataset $(call quoted,$(DATASET))) $(OPTIONS)

clean: ## remove results (not the recorded reference runs), what is built and caches; build/student, build/nbgrader and .venv stay
	rm -rf .pytest_cache .ruff_cache .hypothesis
	find build -mindepth 1 -maxdepth 1 ! -name student ! -name nbgrader -exec rm -rf {} + 2>/dev/null || true
	find results/ -mindepth 1 -maxdepth 1 ! -name reference -exec rm -rf {} + 2>/dev/null || true

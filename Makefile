# make reproduce   run the notebooks into runs/$(TIER)/, as notebooks and as HTML
# make reanalyse   the same from the released errors of results/$(TIER), without training; make release writes them
# make batch       the same by the batch engine, job by job; make batch-plan says what it would do
# make decide      add seeds where they decide most, in looks fixed beforehand, until HOURS are spent
# make test        lint, tests, and the committed notebooks checked by nbval; make test-slurm: the engine under Slurm
# make report      index.html in results/$(TIER); RESULTS=runs/$(TIER) makes one of a run of your own
# make release-models   trained networks for models.load into results/models
# make docs       the site of the documentation into docs/_build/html
# make types      what a type checker sees of the public faces, by mypy
# make audit       known vulnerabilities of the versions in requirements.txt; AUDIT="-s osv" asks another service
# All make the virtual environment .venv first, if it is missing or requirements.txt is newer.

PYTHON ?= python3
TIER ?= smoke
# A tier without common.yaml is of the notebooks that have a file there.
OWN = $(basename $(notdir $(wildcard params/$(TIER)/*.yaml)))
ifneq ($(filter common,$(or $(OWN),common)),common)
NOTEBOOKS ?= $(OWN)
endif
NOTEBOOKS ?= tour rq1_auxiliary_tasks rq2_marginal_vulnerability rq3_task_weights rq4_task_selection \
    rq5_adversarial_training rq6_architectures fidelity new_dataset new_method constrained_attacks
OUT = runs/$(TIER)
RESULTS ?= results/$(TIER)
BIN = .venv/bin
PROFILE ?= workflow/profiles/local
PACK ?= 1
HOURS ?= 3
PRECISION ?= auto
# All notebooks of the tier, unless the command line names some.
CHOSEN = $(if $(filter command line,$(origin NOTEBOOKS)),notebooks=$(shell echo $(NOTEBOOKS) | tr ' ' ,))
ENGINE = $(BIN)/snakemake --workflow-profile $(PROFILE) --config params=params/$(TIER) pack=$(PACK) precision=$(PRECISION) $(CHOSEN)

# Threads that wait for others give their core back, also to other programs.
export OMP_WAIT_POLICY ?= passive
# The errors in place of training, where a target says so.
RELEASED =

# Tiny models, and tables, gain nothing by a second thread: as many notebooks at once as there are cores, up to four.
CORES := $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 4 ? n : 4)))
JOBS = $(if $(filter smoke,$(TIER)),$(CORES),1)
ONE_THREAD = $(if $(filter-out 1,$(JOBS)),OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1})

.PHONY: reproduce reanalyse release release-models batch batch-plan decide notebooks report test test-slurm lint types docs audit clean
.DELETE_ON_ERROR:

# Not those that show what a model predicts, which have to train one.
READ = $(filter-out tour new_dataset new_method constrained_attacks,$(NOTEBOOKS))
reproduce: .venv/installed
	@mkdir -p $(OUT)
	@$(MAKE) --no-print-directory --jobs $(JOBS) $(NOTEBOOKS:%=run-%)
	@echo; echo "Done. Open:"; for name in $(NOTEBOOKS); do echo "  $(CURDIR)/$(OUT)/$$name.html"; done

run-%:
	@echo "== $* ($(TIER))"
	@$(ONE_THREAD) $(BIN)/papermill --no-log-output $(if $(ONE_THREAD),--no-progress-bar) \
	    $(addprefix -f ,$(wildcard params/$(TIER)/common.yaml params/$(TIER)/$*.yaml)) $(RELEASED) notebooks/$*.ipynb $(OUT)/$*.ipynb
	@$(BIN)/jupyter nbconvert --log-level ERROR --to html $(OUT)/$*.ipynb

reanalyse:
	@$(MAKE) --no-print-directory reproduce NOTEBOOKS="$(READ)" JOBS=$(CORES) RELEASED="-p released $(RESULTS)/errors.parquet"

batch: .venv/installed
	$(ENGINE)

batch-plan: .venv/installed
	$(ENGINE) --dry-run

decide: .venv/installed
	$(BIN)/python -m mtrlib decide params/$(TIER) --hours $(HOURS) --precision $(PRECISION)

# After make batch: what it computed, in one file; ADD=yes keeps what the file has of others, such as other seeds.
release: .venv/installed
	$(BIN)/python -m mtrlib release params/$(TIER) $(RESULTS) $(if $(ADD),--add) --notebooks $(shell echo $(READ) | tr ' ' ,)

# Trained networks for models.load; MODELS="rooms/sd-v1=KEY ..." with keys that `mtrlib plan` prints.
release-models: .venv/installed
	$(BIN)/python -m mtrlib release-models params/$(TIER) results/models $(MODELS)

# Execute the committed notebooks again, in place, with their defaults.
notebooks: .venv/installed
	$(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False \
	    $(NOTEBOOKS:%=notebooks/%.ipynb) notebooks/results.ipynb

# A page of a folder of results: claims, verdicts, figures, rendered notebooks.
report: .venv/installed
	$(BIN)/python -m mtrlib report $(RESULTS)

test: .venv/installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations=25 --nbval-lax --nbval-current-env \
	    --nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout 600 tests notebooks

# On Debian or Ubuntu, as root; says so and passes where Slurm is not there and cannot be installed.
test-slurm: .venv/installed
	tests/slurm/run $(BIN)/python

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/bin/mypy
	$(BIN)/mypy

.venv/bin/mypy: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check mypy==2.4.1

docs: .venv/bin/sphinx-build
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html -d docs/_build/doctrees -c docs . docs/_build/html

.venv/bin/sphinx-build: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt --editable ".[docs]"

audit: .venv-audit/bin/pip-audit
	.venv-audit/bin/pip-audit --requirement requirements.txt --no-deps --disable-pip --strict $(AUDIT)

.venv-audit/bin/pip-audit:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or later is needed')"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

clean:
	rm -rf .venv .venv-audit docs/_build runs store

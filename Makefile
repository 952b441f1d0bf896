# make show          picture a continent and name an image with the weights that come along
# make demo          train MDEQ on satellite images and picture a continent it has not seen
# make test          the fast tests
# make test-slow     the others
# make test-all      both
# make test-cuda     does it work on this GPU? one report to paste into an issue
# make test-classic  those that depend on versions, with older ones
# make test-onedl    the same, with OneDL's successors of OpenMMLab's packages
# make check-installs  makes fresh environments, one after the other, and tries each
# make coverage      how many lines of the package the fast tests ran with COVERAGE=1
# make mutation      whether the tests find faults that are put in on purpose
# make soak          kills, long runs and many threads (up to 25 minutes)
# make docs          these pages as a site, in docs/_build/html
# make lint          style and types
# make format        put the style right
#
# Each sets up the environment it needs. PYTEST_ARGS is handed to pytest:
#     make test PYTEST_ARGS='-k broyden'
# COVERAGE=1 adds the lines that the fast tests of a set run to .coverage:
#     make test-all coverage COVERAGE=1

PYTHON ?= python3.11
DEFAULT := .venv
CLASSIC := .venv-classic
ONEDL := .venv-onedl
LINT := .venv-lint
# Python compiles what it imports; pip would compile all files, most of which nobody needs.
# Python must keep the result: otherwise each process of the tests compiles it again.
unexport PYTHONDONTWRITEBYTECODE
PIP_INSTALL := bin/python -m pip install --quiet --disable-pip-version-check --no-compile

.PHONY: env env-classic env-onedl show demo test test-slow test-all test-cuda \
	test-classic test-onedl check-installs coverage mutation soak docs lint format

env: $(DEFAULT)/.ready

$(DEFAULT)/.ready: requirements/default.txt requirements/tests.txt requirements/demo.txt \
		setup.py pyproject.toml
	$(PYTHON) -m venv $(DEFAULT)
	@echo 'installing the default cell (some gigabytes the first time)'
	$(DEFAULT)/$(PIP_INSTALL) -r requirements/default.txt -r requirements/tests.txt
	$(DEFAULT)/$(PIP_INSTALL) --no-deps -r requirements/demo.txt
	$(DEFAULT)/$(PIP_INSTALL) --no-deps --editable .
	touch $@

env-classic: $(CLASSIC)/.ready

# mmcv compiles for minutes, a third less without what debuggers need; pip keeps the wheel.
# One that was compiled against another torch does not import, and is compiled anew.
INSTALL_MMCV := PATH=$(CURDIR)/$(CLASSIC)/bin:$$PATH CFLAGS='-O1 -g0' \
	$(CLASSIC)/$(PIP_INSTALL) --no-build-isolation -r requirements/classic-mmcv.txt
$(CLASSIC)/.ready: requirements/classic-build.txt requirements/classic.txt \
		requirements/classic-mmcv.txt requirements/tests.txt setup.py pyproject.toml
	$(PYTHON) -m venv $(CLASSIC)
	@echo 'installing the classic cell (compiles mmcv the first time)'
	$(CLASSIC)/$(PIP_INSTALL) -r requirements/classic-build.txt
	$(CLASSIC)/$(PIP_INSTALL) -r requirements/classic.txt -r requirements/tests.txt
	$(INSTALL_MMCV)
	$(CLASSIC)/bin/python -c 'import mmcv.ops' || \
		$(INSTALL_MMCV) --no-deps --no-cache-dir --force-reinstall
	$(CLASSIC)/$(PIP_INSTALL) --no-deps --editable .
	touch $@

env-onedl: $(ONEDL)/.ready

$(ONEDL)/.ready: requirements/onedl.txt requirements/tests.txt setup.py pyproject.toml
	$(PYTHON) -m venv $(ONEDL)
	@echo "installing the onedl cell (some gigabytes the first time)"
	$(ONEDL)/$(PIP_INSTALL) -r requirements/onedl.txt -r requirements/tests.txt
	$(ONEDL)/$(PIP_INSTALL) --no-deps --editable .
	touch $@

PICTURE := --residual --side-by-side --height 6.9 --opacity 1

SHOW := work_dirs/show
TRAINED := fcn_mdeq-micro-contraction_1xb8-600_earth-96x96
CLASSIFIER := mdeq-tiny-s2-contraction_1xb64-10e_cifar10
SAMPLE := cat/00
# One thread: two that share a busy core wait for each other. And glibc keeps what is
# freed, or every evaluation would ask the system for memory anew.
RUNS := show demo test test-slow test-all test-classic test-onedl
$(RUNS): export OMP_NUM_THREADS := 1
$(RUNS): export MALLOC_MMAP_THRESHOLD_ := 1073741824
$(RUNS): export MALLOC_TRIM_THRESHOLD_ := 4294967296

show: env
	$(DEFAULT)/bin/python tools/dataset_converters/earth.py
	$(DEFAULT)/bin/python tools/analysis_tools/plot_segmentation.py $(TRAINED) $(PICTURE) \
		--out $(SHOW)/continent.png
	@echo 'South America: image, land cover, prediction, residual'
	$(DEFAULT)/bin/python tools/dataset_converters/cifar10_samples.py
	$(DEFAULT)/bin/python demo/image_demo.py data/cifar10_samples/$(SAMPLE).png $(CLASSIFIER) \
		--out $(SHOW)/classified.png

DEMO := work_dirs/demo
SEGMENTOR := configs/segmentation/fcn_mdeq-micro-contraction_1xb8-600_earth-96x96.py
WEIGHTS := $(DEMO)/iter_600.pth

demo: env
	$(DEFAULT)/bin/python tools/dataset_converters/earth.py
	$(DEFAULT)/bin/python tools/train.py $(SEGMENTOR) --work-dir $(DEMO)
	$(DEFAULT)/bin/python tools/test.py $(SEGMENTOR) $(WEIGHTS) --work-dir $(DEMO)
	$(DEFAULT)/bin/python tools/analysis_tools/plot_segmentation.py $(SEGMENTOR) $(WEIGHTS) \
		$(PICTURE) --out $(DEMO)/continent.png
	$(DEFAULT)/bin/python tools/analysis_tools/plot_convergence.py $(SEGMENTOR) $(WEIGHTS) \
		--num-samples 1 --out $(DEMO)/convergence.png
	@echo
	@echo 'Done. Look at'
	@echo '  $(DEMO)/continent.png      South America: image, land cover, prediction, residual'
	@echo '  $(DEMO)/convergence.png    residual of its equilibrium against evaluations'
	@echo 'Log and checkpoints are in $(DEMO).'

# Two processes of tests with one thread each share two cores better than threads do.
# A file stays in one process, so that its fixtures are made once. The files come in the
# order of tests/conftest.py, which begins with the longest.
WORKERS ?= 2
PYTEST := bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
	--durations=10
# What several sets of tests ran is joined, so that none runs twice.
ifdef COVERAGE
PYTEST += --cov --cov-append --cov-report=
endif

test: env
	$(DEFAULT)/$(PYTEST) -m 'not slow' $(PYTEST_ARGS)

test-slow: env
	$(DEFAULT)/$(PYTEST) -m slow $(PYTEST_ARGS)

test-all: env
	$(DEFAULT)/$(PYTEST) $(PYTEST_ARGS)

# At most nine minutes. REPORT_ARGS is handed to the tool.
REPORT ?= device_report.md
test-cuda: env
	$(DEFAULT)/bin/python tools/misc/device_report.py --out $(REPORT) $(REPORT_ARGS)

COVERAGE_LEAST := 95
coverage: env
	$(DEFAULT)/bin/python -m coverage report --fail-under=$(COVERAGE_LEAST)

# MUTATION_ARGS='--only Broyden' puts in some faults alone.
mutation: env
	$(DEFAULT)/bin/python tests/mutation/run.py --jobs $(WORKERS) \
		--out work_dirs/mutation.md $(MUTATION_ARGS)

# SOAK_ARGS='--form short' does a little of everything.
soak: env
	$(DEFAULT)/bin/python tests/soak/run.py --out work_dirs/soak.md $(SOAK_ARGS)

CLASSIC_TESTS ?= versions
test-classic: env-classic
	$(CLASSIC)/$(PYTEST) -m '$(CLASSIC_TESTS)' $(PYTEST_ARGS)

ONEDL_TESTS ?= versions
test-onedl: env-onedl
	$(ONEDL)/$(PYTEST) -m '$(ONEDL_TESTS)' $(PYTEST_ARGS)

# INSTALLS_ARGS='--only onedl' makes some environments alone.
check-installs:
	$(PYTHON) tests/installs/run.py --out work_dirs/installs.md $(INSTALLS_ARGS)

$(DEFAULT)/.docs: requirements/docs.txt $(DEFAULT)/.ready
	$(DEFAULT)/$(PIP_INSTALL) -r requirements/docs.txt
	touch $@

# A warning is an error: a link that leads nowhere, a docstring that is no good markup.
docs: $(DEFAULT)/.docs
	$(DEFAULT)/bin/python -m sphinx --fail-on-warning --keep-going --quiet \
		--doctree-dir docs/_build/doctrees docs/en docs/_build/html
	@echo 'Open docs/_build/html/index.html.'

$(LINT)/.ready: requirements/lint.txt
	$(PYTHON) -m venv $(LINT)
	$(LINT)/$(PIP_INSTALL) -r requirements/lint.txt
	touch $@

# mypy needs the types of torch and numpy.
lint: $(LINT)/.ready env
	$(LINT)/bin/ruff check .
	$(LINT)/bin/ruff format --check .
	$(LINT)/bin/mypy --python-executable $(DEFAULT)/bin/python

format: $(LINT)/.ready
	$(LINT)/bin/ruff check --fix .
	$(LINT)/bin/ruff format .

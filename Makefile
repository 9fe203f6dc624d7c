# make demo   from nothing to a catalogue of redshifts of synthetic galaxies
# make test   the whole test suite; make test-quick its unit tier, in under three minutes
# make test-aws   the part of it that is about AWS, in a cloud on this machine
# make report what runs cost and how fast they were: of the demo run, a small sweep and the published figures
# make docs   the documentation as a site, build/docs/index.html, with docs/commands.md; make docs-serve while you write
# make picture   docs/images/demo.png, the demo's plot for the README
# make check  what CI runs: lint, types, tests
# make image  this commit as an image, cosmicai-cpu.oci.tar; with GPUs: make image VARIANT=cuda
# make sif    the same for Apptainer, cosmicai.sif
PYTHON ?= python3
VENV ?= .venv
VARIANT ?= cpu
BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
TORCH = grep -o 'torch==[0-9.]*' pyproject.toml
TORCHVISION = grep -o 'torchvision==[0-9.]*' pyproject.toml
# It resolves the locks: unlike pip it knows the hashes of all files of a version, for all platforms and Pythons.
UV := uv==0.13.9
# AWS Lambda's emulator is a program in this package, whose own requirements do not fit ours.
EMULATOR := aws-sam-cli==1.170.0
# Libraries of the field that read catalogues. Tests let them do so in an environment of its own, as users have them.
INTEROP := qp-prob==1.1.4 pz-rail-base==2.0.11 hats==0.11.1 lsdb==0.11.1 polars==2.1.0

# Results of the published project, a clone of which has more than the few figures that come along.
PUBLISHED ?=

.PHONY: demo install report test test-quick test-aws lint format check docs docs-serve picture image sif audit kill lock clean

demo: install
	$(BIN)/cosmicai demo --out demo
	@echo "The command cosmicai is there after: . $(BIN)/activate"

install: $(VENV)/installed

# torch comes last and apart: its builds for CPUs and for CUDA have one version, but hashes of their own, and pip takes
# the one that it is configured to find. What they need besides CUDA has then been installed, by its hashes.
NATIVE := $(wildcard src/cosmicai/engines/native/*.cpp src/cosmicai/engines/native/*.h) src/cosmicai/engines/native/build.py
$(VENV)/installed: requirements.lock requirements-dev.lock pyproject.toml setup.py $(NATIVE) | $(BIN)/python
	$(PIP) --require-hashes --requirement requirements.lock --requirement requirements-dev.lock
	$(PIP) "$$($(TORCH))"
	$(PIP) --no-deps "$$($(TORCHVISION))"
	$(PIP) --no-build-isolation --no-deps --editable .
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with make PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { [ "$$(id -u)" = 0 ] && apt-get -qq update && apt-get -qq install -y python3-venv >/dev/null; } || \
	  { echo "$(PYTHON) has no venv; install it with: sudo apt-get install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

report: demo
	$(BIN)/cosmicai bench sweep demo/survey --out sweep --partition-mb 10,25 --batch-sizes 512 --world-sizes 1,2,4
	$(BIN)/python -m analysis report demo/run sweep $(PUBLISHED) --out report

test: install $(VENV)/rie $(VENV)/interop/installed
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup

# Seconds to minutes, without root, services or containers.
test-quick: install
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup tests/unit

test-aws: install $(VENV)/rie
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup tests/system/aws tests/integration/aws tests/integration/aws_lambda tests/unit/aws_lambda

$(VENV)/rie: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ $(EMULATOR)

$(VENV)/interop/installed: requirements-interop.lock | $(BIN)/python
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement $<
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

check: lint test

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Fails at broken links and at pages that are not in the navigation.
docs: install docs/commands.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --clean

docs-serve: install docs/commands.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --watch src --watch analysis --watch README.md

# Always made anew: it depends on the help texts of all commands.
.PHONY: docs/commands.md
docs/commands.md: install
	$(BIN)/python docs/generate_commands.py >$@.partial-new
	mv $@.partial-new $@

picture: demo
	$(BIN)/python docs/shrink_picture.py demo/run/inference.png docs/images/demo.png

image: install
	containers/build.sh --variant $(VARIANT)

sif:
	containers/sif.sh cosmicai-$(VARIANT).oci.tar

# Known vulnerabilities of what the program and the image need. pip-audit prints a table of what it has found, and none
# if the index gave no answer.
audit:
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet pip-audit
	{ $(TORCH); $(TORCHVISION); } >build/audit/torch.txt
	@build/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement requirements.lock \
	  --requirement containers/requirements.lock --requirement build/audit/torch.txt >build/audit/found.txt && exit; \
	cat build/audit/found.txt; test ! -s build/audit/found.txt || exit 1; \
	echo "make audit: nothing was checked, since the index did not answer for all packages (see above); use an index" \
	  "with known vulnerabilities, as PyPI, or give the image's list to a scanner:" \
	  "apptainer exec cosmicai.sif cat /opt/cosmicai/sbom.cdx.json" >&2; exit 2

# Thirty kill -9 at random moments, each followed by --resume, of one process and of two ranks with their launcher; ends
# well only if the catalogue is bit-identical.
kill: install
	$(BIN)/python tests/support/kill_and_resume.py --kills 30
	$(BIN)/python tests/support/kill_and_resume.py --kills 30 --procs 2

# Resolves anew from pyproject.toml, for all platforms and all versions of Python that it permits, without torch and its
# CUDA (see `install`). Each lock has what those before it lack: requirements.lock, that of the image, that of the tests.
RESOLVE = build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
  --generate-hashes --no-annotate --no-header pyproject.toml --extra all
WITHOUT_TORCH = sed -E '/^(torch==|torchvision==|triton==|cuda-|nvidia-[^m])/,/[^\\]$$/d; /^\#/d'
BESIDES = $$(sed -n 's/^\([^ ]*\)==.*/--no-emit-package \1/p' requirements.lock)
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet $(UV)
	$(RESOLVE) --extra dev --output-file build/lock/everything.txt
	$(RESOLVE) --constraint build/lock/everything.txt --output-file build/lock/all.txt
	$(WITHOUT_TORCH) build/lock/all.txt >requirements.lock
	$(RESOLVE) --constraint build/lock/everything.txt --extra int8 --extra lambda --extra gpu $(BESIDES) \
	  --output-file build/lock/image.txt
	$(WITHOUT_TORCH) build/lock/image.txt >containers/requirements.lock
	$(RESOLVE) --constraint build/lock/everything.txt --extra dev $(BESIDES) --output-file build/lock/dev.txt
	$(WITHOUT_TORCH) build/lock/dev.txt >requirements-dev.lock
	printf '%s\n' $(INTEROP) >build/lock/interop.in
	build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	  --no-annotate --no-header build/lock/interop.in --output-file requirements-interop.lock

clean:
	rm -rf $(VENV) build demo sweep report

# Everything a developer does here. Needs only make and Python 3.11 or newer: `make help`.
PYTHON ?= python3

VENV := .venv/.stamp
LOWEST := .venv-lowest/.stamp
UV := .venv/bin/uv

# napari's pytest plugins load in every session, and must not where there is no screen.
HEADLESS := -p no:napari -p no:npe2 -p no:napari-plugin-engine
# One file of tests stays in one process, for the data that its tests share.
CORE := $(HEADLESS) -n auto --dist loadfile -m "not viewer and not acceptance and not install"
# What takes long and asks how good the numbers are, not whether the code runs, is run once.
ONCE := -m "not viewer and not acceptance and not install and not long"

SCREEN := xvfb-run -a -s "-screen 0 1600x1000x24"
PROBE := $(SCREEN) .venv/bin/python tests/screen_probe.py
VIEWER_PACKAGES := xvfb xauth libgl1 libegl1 libglx-mesa0 libgl1-mesa-dri libxkbcommon-x11-0 \
	libdbus-1-3 libxcb-cursor0 libxcb-icccm4 libxcb-image0 libxcb-keysyms1 libxcb-randr0 \
	libxcb-render-util0 libxcb-shape0 libxcb-xinerama0

COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make pins" pyproject.toml

.PHONY: help venv demo test lint test-core test-apart test-notebooks test-viewer test-wheel \
	test-lowest screenshots acceptance viewer-packages pins clean
.NOTPARALLEL:

help:
	@echo "make demo        simulate an electrode, run the whole method on it, compare with the truth"
	@echo "make test        lint, types, import directions, all tests, the wheel, lowest versions"
	@echo "make acceptance  the long figures and the benchmarks; hours"
	@echo "make venv        only install, into .venv"
	@echo "make screenshots take the pictures of docs/viewer.md again"
	@echo "make pins        resolve the pinned versions again (UPGRADE=--upgrade takes newer ones)"
	@echo "make clean       remove what the other targets made"
	@echo "Another Python:  make PYTHON=python3.12 test"

venv: $(VENV)

$(VENV): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "spectromap needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Installing the pinned packages into .venv; the first time this takes a few minutes."
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --require-hashes --only-binary :all: -r constraints.txt
	.venv/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(VENV)
	.venv/bin/spectromap demo --out demo

test: lint test-core test-apart test-viewer test-lowest

lint: $(VENV)
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

test-core: $(VENV)
	.venv/bin/pytest $(CORE)

test-notebooks: $(VENV)
	@if ls notebooks/*.ipynb >/dev/null 2>&1; then \
		set -x; .venv/bin/pytest $(HEADLESS) -n 2 --nbmake --nbmake-timeout=900 notebooks; \
	else echo "There are no notebooks."; fi

# Notebooks and the wheel side by side, because each of them waits a lot.
test-apart: $(VENV)
	.venv/bin/pytest $(HEADLESS) -n 2 --dist loadfile --nbmake --nbmake-timeout=900 \
		notebooks tests/install

# In a process of its own: without a screen Qt ends the whole session.
test-viewer: viewer-packages
	@if $(PROBE) >/dev/null 2>&1; then \
		set -x; $(SCREEN) .venv/bin/pytest -n 2 --dist loadfile -m viewer; \
	else echo "Viewer tests skipped: there is no virtual screen (see above)."; fi

# The tour of the viewer tests is also what takes the pictures of the documentation.
screenshots: viewer-packages
	SPECTROMAP_SCREENSHOTS=docs/viewer $(SCREEN) .venv/bin/pytest -m viewer tests/viewer/test_tour.py

# The built wheel with its own dependencies and nothing else, in a new environment.
test-wheel: $(VENV)
	.venv/bin/pytest $(HEADLESS) -m install tests/install

$(LOWEST): constraints-lowest.txt $(VENV)
	$(UV) venv --quiet --clear --python .venv/bin/python .venv-lowest
	$(UV) pip sync --quiet --require-hashes --only-binary :all: --python .venv-lowest/bin/python \
		constraints-lowest.txt
	@touch $@

test-lowest: $(LOWEST)
	rm -rf build/wheel
	.venv/bin/hatchling build -t wheel -d build/wheel
	$(UV) pip install --quiet --no-deps --reinstall --python .venv-lowest/bin/python build/wheel/*.whl
	.venv-lowest/bin/pytest $(CORE) $(ONCE) --ignore=tests/viewer

# A bar that one benchmark misses must not keep the next from running. Names that begin with an
# underscore are what the others import.
acceptance: $(VENV)
	.venv/bin/pytest $(HEADLESS) -m acceptance
	@missed=; for script in benchmarks/[!_]*.py; do \
		(set -x; .venv/bin/python "$$script") || missed="$$missed $$script"; done; \
	if [ -n "$$missed" ]; then echo "Missed a bar or failed:$$missed" >&2; exit 1; fi

# Judged by trying it: a window and an OpenGL context on a virtual screen.
viewer-packages: $(VENV)
	@if $(PROBE) >/dev/null 2>&1; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then become=""; \
	elif sudo -n true 2>/dev/null; then become="sudo -n"; else become=no; fi; \
	if [ "$$become" != no ] && command -v apt-get >/dev/null; then \
		$$become apt-get update -qq; \
		$$become env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
			--no-install-recommends $(VIEWER_PACKAGES) >/dev/null; \
		if $(PROBE); then exit 0; fi; \
	fi; \
	echo "The viewer tests need a virtual screen with OpenGL. Install (Debian's names):" >&2; \
	echo "  $(VIEWER_PACKAGES)" >&2; \
	if [ "$$CI" = true ]; then exit 1; fi

# Both files hold versions and hashes only, so that any registry or mirror can serve them.
pins:
	@[ -x $(UV) ] || $(MAKE) venv
	$(COMPILE) $(UPGRADE) --all-extras -o constraints.txt
	$(COMPILE) $(UPGRADE) --extra test --resolution lowest-direct -o constraints-lowest.txt

clean:
	rm -rf .venv .venv-lowest build dist demo .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find spectromap tests -name __pycache__ -type d -prune -exec rm -rf {} +

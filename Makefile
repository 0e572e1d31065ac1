# Everything is set up in .venv from pinned versions (constraints.txt), once.
PYTHON ?= python3
READY := .venv/.ready

.PHONY: setup demo test lint docs docs-site slow clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tunesmith needs Python 3.11 or newer; set PYTHON=…")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt torch
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)
	.venv/bin/tunesmith run shopsphere --small

test: $(READY)
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(if $(ROOM),tests/$(ROOM))

slow: $(READY)
	.venv/bin/python -m pytest -m slow

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/codespell
	.venv/bin/proselint check README.md CONTRIBUTING.md SECURITY.md docs/*.md docs/*/*.md

docs: $(READY)
	.venv/bin/python -m tools.reference

docs-site: $(READY)
	.venv/bin/zensical build --strict -f mkdocs.yml

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis

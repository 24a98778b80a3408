# phalanx. `make demo` and `make test` set up all they need, in .venv* and target/ only.
.DEFAULT_GOAL := help
.PHONY: help build demo test conformance soak fuzz sanitize check bench bench-plots clean setup

PYTHON := .venv/bin/python

# What the caller's shell had activated is none of our business.
unexport PYTHONHOME PYTHONPATH CONDA_PREFIX
export VIRTUAL_ENV := $(CURDIR)/.venv
export PYO3_PYTHON := $(CURDIR)/$(PYTHON)

help: ## what there is to make
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup:
	@python=$$(tools/pythons.sh | tail -n 1 | cut -f 3); \
	test -n "$$python" || { echo 'no CPython >= 3.11 with venv found' >&2; exit 1; }; \
	tools/venv.sh .venv "$$python" dev

build: setup ## the extension, in release, into .venv (editable)
	PIP_QUIET=1 .venv/bin/maturin develop --release --quiet
	@# Where PYTHONDONTWRITEBYTECODE is set, each start would compile the package anew.
	@$(PYTHON) -m compileall -q python/phalanx

demo: build ## the programs of the README and a real job, in Python and in Rust
	$(PYTHON) tools/demo.py

test: build ## every test: Rust, loom, pytest on every CPython, CPython's own suite
	$(PYTHON) tools/test.py

conformance: build ## CPython's own suite, all of it, on every CPython with every start method
	$(PYTHON) tools/conformance.py

soak: build ## ten minutes of work under random deaths; SEED=n repeats one
	$(PYTHON) tests/python/soak.py --seconds 600 $(if $(SEED),--seed $(SEED))

check: build ## formatting, lints, types and stubs
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTFLAGS="--cfg phalanx_hollow -D warnings -A unused" cargo check -p phalanx --target-dir target/hollow
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	$(PYTHON) -m mypy.stubtest phalanx._phalanx

fuzz: build ## millions of inputs that are nonsense, for all that reads what another process wrote
	$(PYTHON) tools/fuzz.py

sanitize: setup ## the engine's tests under AddressSanitizer and ThreadSanitizer (nightly Rust)
	$(PYTHON) tools/sanitize.py

bench: build ## phalanx against its peers, in one run: tables, and benches/results.json
	@tools/venv.sh .venv-bench "$$(tools/pythons.sh | tail -n 1 | cut -f 3)" bench
	rm -f target/wheels/phalanx-*.whl
	.venv/bin/maturin build --release --quiet --out target/wheels
	.venv-bench/bin/python -m pip install --quiet --force-reinstall --no-deps target/wheels/phalanx-*.whl
	.venv-bench/bin/python benches/python/bench.py --rust

bench-plots: ## charts and tables of README.md and docs/performance.md, from benches/results.json
	python3 benches/python/plots.py
	python3 benches/python/report.py

clean: ## remove everything that was made here
	rm -rf .venv .venv-* target dist python/phalanx/*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache
	find python tests tools benches examples -name __pycache__ -type d -prune -exec rm -rf {} +

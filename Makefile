# mpcore: `make demo` and `make test` set everything up in .venv and need only Rust (rustup) and CPython >= 3.10.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
EXTRAS := --extra torch --extra report --extra demo --extra onnx --extra hf --extra data --extra docs --extra dev
# A python with no venv module, or torch's large wheels on a slow line, get room to work.
export UV_HTTP_TIMEOUT ?= 600

.PHONY: help build demo test lint bench docs site pictures check ray faults fuzz sanitize valgrind wheel sdist reproducible licences sbom examples clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/.packages: pyproject.toml
	@command -v cargo >/dev/null || { echo "mpcore: cargo not found; install Rust with rustup" >&2; exit 1; }
	@command -v $(PYTHON) >/dev/null || { echo "mpcore: no $(PYTHON) found; install CPython >= 3.10 or run 'make PYTHON=/path/to/python3'" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "mpcore: $$($(PYTHON) --version) is too old; CPython >= 3.10 is needed ('make PYTHON=python3.11')" >&2; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv || { echo "mpcore: '$(PYTHON) -m venv' failed; on Debian install python3-venv" >&2; exit 1; }
	@[ -x $(BIN)/uv ] || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r pyproject.toml $(EXTRAS)
	@touch $@

RUST := Cargo.toml Cargo.lock $(wildcard rust/*/Cargo.toml) $(shell find rust -name '*.rs')

.venv/.built: .venv/.packages $(RUST)
	$(BIN)/maturin develop --release --quiet
	@touch $@

build: .venv/.built  ## set up .venv and compile the extension

demo: build  ## run the main job on an embedded default: train, prune, certify, distil, verify, report
	$(BIN)/mpcore demo --out demo-run

test: build  ## all tests, Rust and Python
	cargo test --release --workspace --quiet
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

# One profile for everything that cargo checks: macros and build scripts are compiled once, for `build`.
lint: build  ## formatting, lints, types
	cargo fmt --check
	cargo clippy --release --workspace --all-targets --quiet -- -D warnings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest --allowlist tests/stubtest.allow mpcore._native

docs: build  ## Rust documentation with warnings as errors, Python docstring examples
	RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps --quiet
	$(BIN)/python -m pytest --doctest-modules python/mpcore
	$(BIN)/mkdocs build --quiet

site: build  ## build the documentation site into site/, every warning an error
	$(BIN)/mkdocs build

pictures: build  ## run the documentation pages that draw and keep their pictures
	$(BIN)/python tests/python/pages.py

check: lint docs test  ## everything CI runs

ray: build  ## fit layers on a Ray cluster of two workers, beside threads
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r pyproject.toml --extra scale
	$(BIN)/python tests/try_ray.py

faults: build  ## kill, interrupt, fill the disk of and damage small runs (root: with disks of its own)
	$(BIN)/python tests/faults.py

fuzz: build  ## ten thousand random and hostile inputs through every public function and file reader
	$(BIN)/python tests/fuzz.py

KERNELS := nm:: sparse:: permute:: vector:: linalg::values linalg::rsvd

valgrind:  ## the kernels' unit tests under valgrind, portable and AVX2 (it knows no AVX-512)
	for level in portable avx2; do \
	  MPCORE_KERNELS=$$level CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="valgrind --quiet --error-exitcode=9" \
	    cargo test --release --quiet -p mpcore-core --lib -- $(KERNELS) --test-threads 1 || exit 1; done

sanitize:  ## the core's unit tests under AddressSanitizer, portable and the widest of this CPU (AVX-512 too); Linux x86-64
	for kernels in MPCORE_KERNELS=portable -uMPCORE_KERNELS; do \
	  env $$kernels RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address cargo test --release --quiet -p mpcore-core --lib \
	    --target x86_64-unknown-linux-gnu --target-dir target/sanitize || exit 1; done

wheel: .venv/.packages  ## build the abi3 wheel into dist/ and use it on every CPython found here
	rm -rf dist && $(BIN)/python release/build.py dist
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/try_wheel.py dist/*.whl

sdist: .venv/.packages  ## build the sdist into dist/, a wheel from it alone, and use that
	rm -rf dist && $(BIN)/python release/build.py --sdist dist
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/try_sdist.py dist/*.tar.gz

reproducible: .venv/.packages  ## build the wheel in two other folders and compare the bytes
	$(BIN)/python tests/try_reproducible.py

licences: .venv/.packages  ## list the crates in the wheel with their licences: THIRD-PARTY.md
	$(BIN)/python release/licences.py

sbom: .venv/.packages  ## bill of materials of the wheel, CycloneDX: release/mpcore.cyclonedx.json
	$(BIN)/python release/sbom.py

bench: build  ## time the core beside named peers (see benches/README.md)
	$(BIN)/mpcore bench
	$(BIN)/python benches/python/masks.py
	$(BIN)/python benches/python/permutation.py

examples: build  ## packages the examples need (real weights and images)
	$(BIN)/python examples/setup.py

clean:  ## remove what was built; .venv stays
	rm -rf target dist site demo-run python/mpcore/_native*.so .venv/.built

# Every target makes the environment it needs, in .venv; nothing outside this folder is touched.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help env demo test test-long lint bench proto clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 10

env: .venv/.installed  ## make the environment in .venv

.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: env  ## build the example: data, two nets, features, evaluation and report.html
	snakemake --cores all --quiet rules host
	@$(MAKE) --no-print-directory report.html
	@$(BIN)/python -m pipeline.summary results
	@echo "report.html has the curves, the confusion matrices, pictures of the nets and every prediction"

# All that the report shows: it is written again when one of them is newer.
report.html: $(wildcard results/report/* results/experiments/*/report/* results/experiments/*/pictures/* results/experiments/*/evaluate/* report/*)
	snakemake --report $@ --quiet all

test: env  ## run the tests
	pytest -n auto -m "not long"

test-long: env  ## run the tests that take long: tutorials, published configs and nets, the report in a browser
	pytest -n auto -m long

lint: env  ## check code and workflow
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile rules
	snakemake --lint

bench: env  ## compare speed with the same nets by hand in PyTorch
	$(BIN)/python benchmarks/train_step.py

proto: env  ## regenerate caffe_pb2.py after an edit of caffe.proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. caffe/proto/caffe.proto

clean:  ## remove what the example made; the environment stays
	rm -rf results logs report.html .snakemake

# Every target makes the environment it needs, in .venv; nothing outside this folder is touched.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help env demo test test-pretend-gpu test-long test-slurm test-scalar test-kernels lint bench proto schema clean rebuild-check example-manifest check-all gpu-check

# The checked config of the example, as the last build in a folder fixed it.
FIXED = $$(ls -t $(1)/.snakemake/roastery/*.json | head -1)

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 10

env: .venv/.installed  ## make the environment in .venv

.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . --config-settings editable_mode=compat
	touch $@

demo: env  ## build the example: data, two nets, features, evaluation and report.html
	snakemake --cores all --quiet rules host
	@$(MAKE) --no-print-directory report.html
	@$(BIN)/python -m pipeline.report.summary results
	@echo "report.html has the curves, the confusion matrices, pictures of the nets and every prediction"
	@echo "Against the build that is recorded in config/example.manifest.json:"
	@$(BIN)/python -m pipeline.report.verify config/example.manifest.json results/manifest.json --kinds $(SAME) --accuracies || true

# All that the report shows: it is written again when one of them is newer.
report.html: $(wildcard results/report/* results/experiments/*/report/* results/experiments/*/pictures/* results/experiments/*/evaluate/* results/*/*/tables results/report/tables report/* pipeline/report/style.css)
	snakemake --report $@ --quiet all

# What a pretend GPU runs a second time: every layer type, solver, net, data layer and snapshot, and the steps' nets.
ON_GPU := tests/caffe/layer_types tests/caffe/engine tests/caffe/training/test_snapshots.py \
  tests/pipeline/training/test_recorded_nets.py tests/pipeline/inference tests/pipeline/training/test_frozen.py tests/pipeline/training/test_train.py

test: env  ## run the tests, some of them also on a pretend GPU
	pytest -n auto -m "not long"
	pytest -n auto -m "not long" --pretend-gpu $(ON_GPU)

test-pretend-gpu: env  ## run all tests on a pretend GPU
	pytest -n auto -m "not long" --pretend-gpu

test-long: env  ## run the tests that take long: tutorials, published configs and nets, the report in a browser
	pytest -n auto -m long

NUMERIC := tests/caffe/layer_types tests/caffe/engine/test_gradients.py tests/caffe/engine/test_net.py \
  tests/pipeline/training/test_recorded_nets.py

test-slurm: env  ## run the workflow on a Slurm cluster of one node, where Debian's packages can be installed
	@code=0; $(BIN)/python -m tests.slurm.cluster pytest tests/slurm || code=$$?; [ $$code = 77 ] || exit $$code

# PyTorch's builds for CUDA bring Triton along; the one for processors, which the environment has here, does not.
TRITON := triton==3.9.0
BY_KERNELS := lrn or softmax or eltwise or scale or (updates and fp32)

test-kernels: env  ## test the kernels for GPUs on a processor; installs Triton in .venv, 1 GB
	$(BIN)/python -c "import triton" 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(TRITON)
	TRITON_INTERPRET=1 pytest -n auto tests/kernels
	TRITON_INTERPRET=1 pytest -n auto --pretend-gpu tests/caffe/layer_types/test_recordings.py -k "$(BY_KERNELS)"

test-scalar: env  ## run the numeric tests as a processor without AVX would, on one thread
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.without_vector_code pytest -n auto -m "not long" $(NUMERIC)

SAME := data weights predictions metrics
EXAMPLE = snakemake --quiet rules host --configfile config/config.yaml --directory .rebuild/$(1) --cores

rebuild-check: env  ## build the example three times: with all cores, with one, and without vector code; and compare
	rm -rf .rebuild && mkdir -p .rebuild/first .rebuild/second .rebuild/scalar
	$(call EXAMPLE,first) all
	$(call EXAMPLE,second) 1
	$(BIN)/python -m tests.without_vector_code $(call EXAMPLE,scalar) all
	$(BIN)/python -m pipeline.report.verify .rebuild/first/results/manifest.json
	$(BIN)/python -m pipeline.report.verify .rebuild/first/results/manifest.json .rebuild/second/results/manifest.json --kinds $(SAME)
	$(BIN)/python -m pipeline.report.verify .rebuild/first/results/manifest.json .rebuild/scalar/results/manifest.json --kinds $(SAME)
	$(BIN)/python -m pipeline.report.verify config/example.manifest.json .rebuild/first/results/manifest.json --kinds $(SAME)
	rm -rf .rebuild

example-manifest: demo  ## record the example's results and accuracies in config/ and its metrics in docs/, after a demo
	$(BIN)/python -m pipeline.report.manifest results config/example.manifest.json --config $(call FIXED,.) --kinds $(SAME)
	for each in base scratch finetuned; do for kind in metrics.csv train.log; do \
	  cp results/experiments/$$each/train/$$kind docs/logs/digits_$$each.$${kind#*.}; done; done

gpu-check: env  ## check and measure this machine's GPU, in at most 8 minutes
	$(BIN)/python benchmarks/gpu_check.py

check-all: env  ## everything, before a release: all tests with 1 and 2 threads, without vector code, under load; a rebuild
	$(MAKE) lint types docs
	OMP_NUM_THREADS=1 pytest -n auto -m "not long"
	OMP_NUM_THREADS=2 pytest -n 1 -m "not long"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.without_vector_code pytest -n auto -m "not long"
	$(BIN)/python -m tests.under_load pytest -n 1 -m "not long"
	ROASTERY_SHARED=/nowhere pytest -n auto -m "not long"
	$(MAKE) test-pretend-gpu test-kernels
	ROASTERY_KILLS=30 $(MAKE) test-long
	$(MAKE) test-slurm rebuild-check

lint: env  ## check code and workflow
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile rules
	snakemake --lint
	lint-imports

.PHONY: types docs hooks wheel

types: env  ## check the types of both packages
	mypy

# Pages keep their folders, so that their links hold on the site as in the repository.
docs: env  ## build the site of tutorials and API in build/site; a broken link is an error
	rm -rf build/pages && mkdir -p build/pages
	tar -cf - README.md CHANGELOG.md CONTRIBUTING.md LICENSE NOTICE benchmarks/README.md tests/wild/README.md config docs | tar -xf - -C build/pages
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

hooks: env  ## check code at each commit, by .pre-commit-config.yaml
	pre-commit install

wheel: env  ## build the package in dist/
	rm -rf build
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .

bench: env  ## compare speed and memory with PyTorch by hand, torch.compile, onnxruntime and the machine's floor; BENCH=… are options
	$(BIN)/python benchmarks/speed.py --memory --csv build/bench/speed.csv --plot build/bench/speed.png $(BENCH)

proto: env  ## regenerate caffe_pb2 after an edit of caffe.proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. caffe/proto/caffe.proto

schema: env  ## write config/schema.yaml and the table of keys in config/README.md from pipeline/options
	python config/generate.py

clean:  ## remove what the example made; the environment stays
	rm -rf results logs report.html .snakemake .rebuild

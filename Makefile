# make demo    a training run on this machine: no root, no sshd, no cluster   (DATA=folder: your own text)
# make test    everything that CI runs; as root it also installs what real hosts, a real Ceph and HDFS need
# make test-stores   only the store layer on those real servers
# make help    the rest
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
TORCH := torch==2.13.0
CPU_WHEELS := https://download.pytorch.org/whl/cpu
DEBIAN := openssh-server openssh-client rsync nftables iproute2 zstd util-linux mount \
    ceph-mon ceph-osd ceph-mds ceph-fuse radosgw ceph-common openssl openjdk-17-jre-headless

# An installation is redone when what it depends on has changed, and costs nothing otherwise.
HASH := $(shell cat pyproject.toml Makefile | sha256sum | cut -c1-12)
RUN_STAMP := $(VENV)/.llmctl-run-$(HASH)
DEV_STAMP := $(VENV)/.llmctl-dev-$(HASH)
# Root can make real hosts and servers: there a test that needs them and is skipped is a failure.
REQUIRED := $(if $(filter 0,$(shell id -u)),LLMCTL_REQUIRE_HOSTS=1 LLMCTL_REQUIRE_STORES=1 LLMCTL_REQUIRE_HF=1)
# CI's machines are shared and busy: what fails there is tried once more, and the summary names it (RERUN).
RERUNS := $(if $(CI),--reruns 1 -r fEsR)
PIP := $(PY) -m pip --disable-pip-version-check --quiet

.PHONY: help demo test test-stores lint docs bench clean packages hadoop wheel

help: ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(RUN_STAMP) ## train a small model on two hosts that are both this machine
	$(VENV)/bin/llmctl demo $(if $(DATA),--data "$(DATA)")

test: $(DEV_STAMP) packages hadoop lint ## lint, types, import rules, docs, and all tests
	@$(REQUIRED) $(PY) -m pytest -m 'not slow' -n 3 --dist loadscope $(RERUNS) $(ARGS)

test-stores: $(DEV_STAMP) packages hadoop ## only the store layer on real servers: Ceph (S3 gateway, CephFS), HDFS
	@$(REQUIRED) $(PY) -m pytest -m 'stores or stores_fault' $(ARGS)

lint: $(DEV_STAMP) ## style, types, import rules, Python 3.9 of what travels, generated docs
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/vermin --target=3.9- --no-tips --violations --eval-annotations --quiet llmctl/wire llmctl/node llmctl/errors.py
	$(PY) docs/generate.py --check

docs: $(DEV_STAMP) ## write the generated reference pages again
	$(PY) docs/generate.py

bench: $(DEV_STAMP) ## side-by-side measurements against peers; as root, on an idle machine
	@for script in tests/bench/bench_*.py; do \
	    echo "## $$script"; $(PY) -m tests.bench.$$(basename $$script .py); echo; \
	done

wheel: $(DEV_STAMP) ## build dist/*.whl
	$(PIP) wheel --no-deps --wheel-dir dist .

clean: ## remove what make made
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis llmctl-demo

$(PY):
	@for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        $$python -m venv $(VENV) && exit 0; \
	        rm -rf $(VENV); echo "$$python can't make a virtual environment; on Debian: apt-get install python3-venv" >&2; \
	        exit 1; \
	    fi; \
	done; \
	echo "llmctl needs Python 3.11 or newer on this machine; found: $$(python3 --version 2>&1)" >&2; exit 1

$(RUN_STAMP): | $(PY)
	@$(install_torch)
	$(PIP) install --editable '.[worker]' '$(TORCH)'
	@touch $@

$(DEV_STAMP): | $(PY)
	@$(install_torch)
	$(PIP) install --editable '.[worker,infer,parquet,hdfs,s3,dev]' '$(TORCH)'
	@touch $@ $(RUN_STAMP)

# Without a GPU the CPU wheel is a tenth of the size. pip would retry an index that can't be reached for
# minutes, so it is only named after it has answered.
define install_torch
if $(PY) -c 'import torch, sys; sys.exit("$(TORCH)" != "torch==" + torch.__version__.split("+")[0])' 2>/dev/null; then \
    exit 0; \
fi; \
index=; \
if ! command -v nvidia-smi >/dev/null && timeout 6 $(PY) -c 'import urllib.request as u; u.urlopen("$(CPU_WHEELS)/torch/", timeout=4)' 2>/dev/null; then \
    index='--extra-index-url $(CPU_WHEELS)'; \
fi; \
echo "installing $(TORCH) $$index"; \
$(PIP) install '$(TORCH)' $$index
endef

packages: ## Debian packages that the tests want (as root; else it says what is missing)
	@missing=; \
	if ! command -v dpkg-query >/dev/null; then echo "not a Debian system: the tests want $(DEBIAN)"; exit 0; fi; \
	for package in $(DEBIAN); do \
	    dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"; \
	done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ]; then echo "not root: tests will be skipped; missing packages:$$missing"; exit 0; fi; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing

hadoop: $(DEV_STAMP) ## Hadoop's jars for the tests, unpacked once into ~/.cache/llmctl-lab
	@$(PY) -m tests.lab.hdfs install || test "$$(id -u)" != 0

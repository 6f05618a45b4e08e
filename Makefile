# Everything a contributor runs. `make help` lists the targets.
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := python3-bpfcc python3-venv linux-libc-dev nftables
.DEFAULT_GOAL := help
.PHONY: help setup test fuzz lint demo lab life clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what is missing: distribution packages (as root) and the Python environment
	@missing=$$(for p in $(PACKAGES); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q ' installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
		echo "setup: installing" $$missing; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null \
			|| { echo "setup: could not install them (run as root: sudo make setup)" >&2; exit 1; }; \
	fi
	@$(MAKE) -s $(VENV)/.made

# BCC is the distribution's, built for its own Python: hence /usr/bin/python3 and the system's packages.
$(VENV)/.made: pyproject.toml
	@echo "setup: making $(VENV)"
	@/usr/bin/python3 -m venv --system-site-packages $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[test,lint]'
	@touch $@

test: setup ## Run all tests: unit, packet (in the kernel) and netns (real links); wants root
	@$(BIN)/python -m pytest $(ARGS)

fuzz: setup ## Send five million mutated frames through the program; wants root
	@FUZZ_FRAMES=5000000 $(BIN)/python -m pytest tests/packet/test_fuzz.py

lint: setup ## Check style and types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

demo: setup ## Show real connections balanced over members in three networks; wants root
	@$(BIN)/python -m tests.netns.demo

lab: setup ## Keep the demo's networks up to look around in; wants root
	@$(BIN)/python -m tests.netns.demo --stay

life: setup ## Write docs/life.md anew: a gateway's life in commands; wants root
	@$(BIN)/python -m tests.netns.life > docs/life.md

clean: ## Remove what was made here
	rm -rf $(VENV) build

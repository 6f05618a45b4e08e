# Everything a contributor runs. `make help` lists the targets.
VENV := .venv
TOOLS := build/bench/tools
PROMETHEUS := build/prometheus
BIN := $(VENV)/bin
PACKAGES := python3-bpfcc python3-venv linux-libc-dev nftables
.DEFAULT_GOAL := help
.PHONY: help setup test fuzz bench bench-packet bench-gateway lint demo lab life clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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

# Packages unpacked, not installed, so that no service starts: other load balancers to compare with, and promtool.
$(TOOLS)/.made: UNPACKED := haproxy nginx-light libnginx-mod-stream
$(PROMETHEUS)/.made: UNPACKED := prometheus
$(TOOLS)/.made $(PROMETHEUS)/.made:
	@echo "setup: unpacking" $(UNPACKED)
	@rm -rf $(@D) && mkdir -p $(@D)/archives/partial
	@apt-get update -qq && apt-get install -y -qq --no-install-recommends --reinstall --download-only \
		-o APT::Sandbox::User=root -o Dir::Cache::archives=$(CURDIR)/$(@D)/archives $(UNPACKED) >/dev/null \
		|| { echo "setup: could not fetch them (run as root: sudo make $(MAKECMDGOALS))" >&2; exit 1; }
	@for p in $(@D)/archives/*.deb; do dpkg-deb -x $$p $(@D); done
	@rm -r $(@D)/archives
	@touch $@

test: setup $(TOOLS)/.made $(PROMETHEUS)/.made ## Run all tests: unit, packet (in the kernel) and netns (real links); wants root
	@$(BIN)/python -m pytest $(ARGS)

fuzz: setup ## Five million mutated frames through the program, and a thousand random lives; wants root
	@FUZZ_FRAMES=5000000 MODEL_LIVES=1000 $(BIN)/python -m pytest tests/packet/test_fuzz.py tests/packet/test_model.py

bench: bench-packet bench-gateway ## Measure everything

bench-packet: setup $(VENV)/.bench ## Measure what a packet costs in the kernel, beside yardsticks; wants root
	@$(BIN)/python -m tests.bench.packet $(ARGS)

$(VENV)/.bench: $(VENV)/.made
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[bench]'
	@touch $@

bench-gateway: setup $(TOOLS)/.made $(VENV)/.bench ## Compare with other gateways on one core, in five minutes; wants root
	@$(BIN)/python -m tests.bench.gateway $(ARGS)

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

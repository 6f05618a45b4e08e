# Everything a contributor runs. `make help` lists the targets.
VENV := .venv
TOOLS := build/bench/tools
PROMETHEUS := build/prometheus
BIN := $(VENV)/bin
PACKAGES := python3-bpfcc python3-venv linux-libc-dev nftables
.DEFAULT_GOAL := help
.PHONY: help setup test kills fuzz soak bench bench-packet bench-gateway bench-flow-log lint demo lab life picture \
	install uninstall wheels deb vm-test clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

define install-missing
missing=$$(for p in $(1); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q ' installed' || echo $$p; done); \
if [ -n "$$missing" ]; then \
	echo "setup: installing" $$missing; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null \
		|| { echo "setup: could not install them (run as root: sudo make setup)" >&2; exit 1; }; \
fi
endef

setup: ## Install what is missing: distribution packages (as root) and the Python environment
	@$(call install-missing,$(PACKAGES))
	@$(MAKE) -s $(VENV)/.made

# BCC is the distribution's, built for its own Python: hence /usr/bin/python3 and the system's packages.
$(VENV)/.made: pyproject.toml
	@echo "setup: making $(VENV)"
	@/usr/bin/python3 -m venv --system-site-packages $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[test,lint]'
	@touch $@

# Packages unpacked, not installed, so that no service starts: other load balancers to compare with, Wireshark to read
# captures, and promtool.
$(TOOLS)/.made: UNPACKED := haproxy nginx-light libnginx-mod-stream tshark
$(PROMETHEUS)/.made: UNPACKED := prometheus
$(TOOLS)/.made $(PROMETHEUS)/.made: Makefile
	@echo "setup: unpacking" $(UNPACKED)
	@rm -rf $(@D) && mkdir -p $(@D)/archives/partial
	@apt-get update -qq && apt-get install -y -qq --no-install-recommends --reinstall --download-only \
		-o APT::Sandbox::User=root -o Dir::Cache::archives=$(CURDIR)/$(@D)/archives $(UNPACKED) >/dev/null \
		|| { echo "setup: could not fetch them (run as root: sudo make $(MAKECMDGOALS))" >&2; exit 1; }
	@for p in $(@D)/archives/*.deb; do dpkg-deb -x $$p $(@D); done
	@rm -r $(@D)/archives
	@touch $@

test: setup $(TOOLS)/.made $(PROMETHEUS)/.made ## Run all tests: unit, packet (in the kernel) and netns (real links); wants root
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --ignore tests/netns/test_api_fuzz.py $(ARGS)
	@$(BIN)/python -m pytest tests/netns/test_api_fuzz.py # all of one id: two processes would run one of them

kills: setup ## SIGKILL before every step of all that the daemon does, and 100 restarts; an hour or so; wants root
	@KILLS=all $(BIN)/python -m pytest --numprocesses 2 --dist load tests/netns/test_kills.py $(ARGS)

fuzz: setup ## Five million mutated frames through the program, ten million connections, a thousand random lives; wants root
	@FUZZ_FRAMES=5000000 MODEL_LIVES=1000 CEILING_LIVES=10000000 $(BIN)/python -m pytest tests/packet/test_fuzz.py tests/packet/test_model.py tests/packet/test_ceilings.py

soak: setup ## Load a gateway for twenty minutes and see that nothing is left of it (ARGS="--minutes 60"); wants root
	@$(BIN)/python -m tests.soak $(ARGS)

bench: bench-packet bench-gateway ## Measure everything

bench-packet: setup $(VENV)/.bench ## Measure what a packet costs in the kernel, beside yardsticks; wants root
	@$(BIN)/python -m tests.bench.packet $(ARGS)

$(VENV)/.bench: $(VENV)/.made
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[bench]'
	@touch $@

bench-gateway: setup $(TOOLS)/.made $(VENV)/.bench ## Compare with other gateways on one core, in five minutes; wants root
	@$(BIN)/python -m tests.bench.gateway $(ARGS)

bench-flow-log: setup ## Measure how fast the flow log keeps events and is asked (ARGS="--events 10000000")
	@$(BIN)/python -m tests.bench.flow_log $(ARGS)

lint: setup ## Check style and types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

demo: setup ## Show real connections balanced over members in three networks; wants root
	@$(BIN)/python -m tests.netns.demo

lab: setup ## Keep the demo's networks up to look around in; wants root
	@$(BIN)/python -m tests.netns.demo --stay

life: setup ## Write docs/life.md anew: a gateway's life in commands; wants root
	@$(BIN)/python -m tests.netns.life > docs/life.md

picture: setup ## Draw docs/top.svg anew: `ipbackend top` while clients come and go; wants root
	@$(BIN)/python -m tests.netns.picture docs/top.svg

install: ## Install on this machine: /opt/ipbackend, the command, a systemd unit; as root
	@ctl/packaging/install.sh

uninstall: ## Take that away again, and unload the data plane; what is wanted stays
	@ctl/packaging/uninstall.sh

# What `make install` and `make deb` have pip fetch; on the machine: PIP_NO_INDEX=1 PIP_FIND_LINKS=$PWD/build/wheels
WHEELS := build/wheels
wheels: setup ## Fetch what `make install` needs of PyPI to build/wheels, for a machine without a way there (PYTHON=3.13)
	@$(BIN)/pip download -q --disable-pip-version-check --only-binary=:all: -d $(WHEELS) \
		$(if $(PYTHON),--python-version $(PYTHON)) . hatchling click-man

DEB := build/deb
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
deb: ## Build a Debian package for this machine's distribution, in build/deb
	@rm -rf $(DEB) && mkdir -p $(DEB)/ipbackend
	@cp -r pyproject.toml README.md LICENSE bpf ctl $(DEB)/ipbackend/
	@cp -r ctl/packaging/debian $(DEB)/ipbackend/debian
	@printf 'ipbackend (%s~%s) unstable; urgency=medium\n\n  * Version %s.\n\n -- %s  %s\n' $(VERSION) \
		"$$(. /etc/os-release && echo $$ID$$VERSION_ID)" $(VERSION) "ipbackend authors <ipbackend@localhost>" \
		"$$(date -R -d @$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct)})" > $(DEB)/ipbackend/debian/changelog
	@cd $(DEB)/ipbackend && dpkg-buildpackage -b -us -uc
	@ls $(DEB)/*.deb

KERNEL ?= 6.1
VM_PACKAGES := qemu-system-x86 qemu-utils mmdebstrap vagrant vagrant-libvirt
vm-test: setup ## A gateway as a virtual machine, and the tests on another kernel: KERNEL=6.1, 6.12 or trixie; as root
	@$(call install-missing,$(VM_PACKAGES))
	@mkdir -p build/vm
	@VM_KERNEL=$(KERNEL) $(BIN)/python -m pytest tests/vm --numprocesses 2 --dist loadfile -v -rP $(ARGS)

clean: ## Remove what was made here
	rm -rf $(VENV) build

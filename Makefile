# ddpd: one file, nothing to build.  `make` shows what there is.
# On a fresh Debian `make demo` and `make test`, as root, need no other step.

PREFIX ?= /usr/local
SEEDS  ?= 10000

# Sets up what a target needs (nothing, where all is there), then runs Python with the arguments.
WITH   = tests/setup.sh
SHELLS = $(shell grep -rlIE '^.! ?/(usr/)?bin/(env )?(ba)?sh' . --exclude-dir=.git --exclude-dir=.venv \
                 --exclude='*.py' --exclude='*.md')

help:           ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t16

demo:           ## the network of the README, in namespaces of this machine
	@$(WITH) demo tests/demo.py

demo-vps:       ## a rented host whose provider routes nothing, and a home behind it
	@$(WITH) demo tests/demo_vps.py

test:           ## every test, in real namespaces too: set up, then run (root, minutes)
	@$(WITH) test tests/lanes.py

check: lint type  ## what must pass before a commit: lint, type, fast tests (no root, no network)
	@$(WITH) check -m pytest --ignore=tests/netns -m 'not slow'

lint:           ## ruff, and shellcheck for whatever is a shell script
	@$(WITH) check -m ruff check .
	@if command -v shellcheck >/dev/null; then shellcheck $(SHELLS); \
	 else echo 'no shellcheck here: only the syntax is checked'; \
	      for file in $(SHELLS); do sh -n $$file || exit 1; done; fi

type:           ## mypy --strict, tests included
	@$(WITH) check -m mypy ddpd.py tests

netns:          ## only the tests in real namespaces, with their transcripts (root)
	@$(WITH) test -m pytest tests/netns -s

soak:           ## an hour's events in five minutes, on real kernels (root)
	@$(WITH) test tests/soak.py

seeds:          ## the simulation with SEEDS=10000
	@SEEDS=$(SEEDS) $(WITH) check -m pytest tests/test_simulation.py

bench:          ## how fast it is, beside the programs it replaces (root)
	@$(WITH) bench tests/bench/run.py
	@$(WITH) bench tests/bench/beside.py
	@$(WITH) bench tests/bench/neighbours.py
	@$(WITH) bench tests/bench/wireguard.py

docs:           ## rewrite the tables of README.md and PROTOCOL.md from the code
	@$(WITH) check tests/docs.py --write

toc:            ## the sections of ddpd.py, with line numbers
	@grep -n '^# ====\|^# ~~~~' ddpd.py

install:        ## ddpd to PREFIX=/usr/local, below DESTDIR if set
	install -d $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/lib/ddpd $(DESTDIR)$(PREFIX)/share/doc/ddpd
	install -m 644 ddpd.py $(DESTDIR)$(PREFIX)/lib/ddpd/
	install -m 644 ddpd.conf.example README.md PROTOCOL.md $(DESTDIR)$(PREFIX)/share/doc/ddpd/
	@# Byte code halves the memory and the start: Python compiles a script anew each time, a module once.
	python3 -c 'import py_compile, sys; py_compile.compile(sys.argv[1], doraise=True)' $(DESTDIR)$(PREFIX)/lib/ddpd/ddpd.py
	printf '%s\n' '#!/usr/bin/env python3' 'import sys' 'sys.path.insert(0, "$(PREFIX)/lib/ddpd")' \
	    'import ddpd' 'sys.exit(ddpd.main(sys.argv[1:]))' > $(DESTDIR)$(PREFIX)/sbin/ddpd
	chmod 755 $(DESTDIR)$(PREFIX)/sbin/ddpd

.PHONY: help demo demo-vps test check lint type netns soak seeds bench docs toc install
.NOTPARALLEL:

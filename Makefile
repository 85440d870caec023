# ddpd: one file, nothing to build.  `make` shows what there is.
# On a fresh Debian `make demo` and `make test`, as root, need no other step.

PREFIX ?= /usr/local
UNITS  ?= /etc/systemd/system
SEEDS  ?= 10000
SECONDS ?= 3600

# Sets up what a target needs (nothing, where all is there), then runs Python with the arguments.
WITH   = tests/setup.sh
SHELLS = $(shell grep -rlIE '^.! ?/(usr/)?bin/(env )?(ba)?sh' . --exclude-dir=.git --exclude-dir=.venv \
                 --exclude-dir=dist --exclude='*.py' --exclude='*.md' --exclude=Makefile)

help:           ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t16

demo:           ## a small world in namespaces of this machine: a prefix is asked for, granted and used
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
	@$(WITH) check -m mypy ddpd.py openwrt tests

netns:          ## only the tests in real namespaces, with their transcripts (root)
	@$(WITH) test -m pytest tests/netns -s

soak:           ## an hour's events of a home and of its upstream in ten minutes, on real kernels (root)
	@$(WITH) test tests/soak.py

seeds:          ## the simulation with SEEDS=10000
	@SEEDS=$(SEEDS) $(WITH) check -m pytest tests/test_simulation.py

fuzz:           ## bytes and words of others, mutated: SECONDS=3600 in all (SEED=1 again); with atheris, if it is there
	@$(WITH) check tests/fuzz.py all $(SECONDS) $(SEED)

bench:          ## how fast it is, beside the programs it replaces (root)
	@$(WITH) bench tests/bench/run.py
	@$(WITH) bench tests/bench/beside.py
	@$(WITH) bench tests/bench/neighbours.py
	@$(WITH) bench tests/bench/wireguard.py
	@$(WITH) bench tests/bench/router.py

docs:           ## rewrite the tables of the pages, and the man pages, from the code
	@$(WITH) check tests/docs.py --write

toc:            ## the sections of ddpd.py, with line numbers
	@grep -n '^# ====\|^# ~~~~' ddpd.py

ipk:            ## the packages for OpenWrt up to 24.10 into dist/ (no SDK, the same bytes each time)
	@python3 openwrt/build.py ipk

apk:            ## those for OpenWrt from 25.12, where there is `apk mkpkg`
	@python3 openwrt/build.py apk

install:        ## ddpd to PREFIX=/usr/local, below DESTDIR if set, its pages, and a unit for systemd
	install -d $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/lib/ddpd $(DESTDIR)$(PREFIX)/share/doc/ddpd/docs \
	    $(DESTDIR)$(PREFIX)/share/man/man5 $(DESTDIR)$(PREFIX)/share/man/man8 $(DESTDIR)$(UNITS)
	install -m 644 ddpd.py $(DESTDIR)$(PREFIX)/lib/ddpd/
	install -m 644 ddpd.conf.example README.md PROTOCOL.md $(DESTDIR)$(PREFIX)/share/doc/ddpd/
	install -m 644 docs/*.md $(DESTDIR)$(PREFIX)/share/doc/ddpd/docs/
	install -m 644 docs/ddpd.conf.5 $(DESTDIR)$(PREFIX)/share/man/man5/
	install -m 644 docs/ddpd.8 $(DESTDIR)$(PREFIX)/share/man/man8/
	@# Byte code halves the memory and the start: Python compiles a script anew each time, a module once.
	python3 -c 'import py_compile, sys; py_compile.compile(sys.argv[1], doraise=True)' $(DESTDIR)$(PREFIX)/lib/ddpd/ddpd.py
	printf '%s\n' '#!/usr/bin/env python3' 'import sys' 'sys.path.insert(0, "$(PREFIX)/lib/ddpd")' \
	    'import ddpd' 'sys.exit(ddpd.main(sys.argv[1:]))' > $(DESTDIR)$(PREFIX)/sbin/ddpd
	chmod 755 $(DESTDIR)$(PREFIX)/sbin/ddpd
	printf '%s\n' "$$UNIT" > $(DESTDIR)$(UNITS)/ddpd.service

uninstall:      ## remove what `make install` put there, with the same variables; keys, leases and configuration stay
	@cd $(DESTDIR)/ && rm -f .$(PREFIX)/sbin/ddpd .$(PREFIX)/lib/ddpd/ddpd.py .$(PREFIX)/lib/ddpd/__pycache__/ddpd.*.pyc \
	    .$(PREFIX)/share/doc/ddpd/ddpd.conf.example .$(PREFIX)/share/doc/ddpd/README.md \
	    .$(PREFIX)/share/doc/ddpd/PROTOCOL.md $(patsubst %,.$(PREFIX)/share/doc/ddpd/%,$(wildcard docs/*.md)) \
	    .$(PREFIX)/share/man/man5/ddpd.conf.5 .$(PREFIX)/share/man/man8/ddpd.8 .$(UNITS)/ddpd.service
	@# Folders that are ours, if nobody else has put something there; below DESTDIR the others too.
	@cd $(DESTDIR)/ && for folder in lib/ddpd/__pycache__ lib/ddpd share/doc/ddpd/docs share/doc/ddpd; do \
	    [ ! -d .$(PREFIX)/$$folder ] || rmdir --ignore-fail-on-non-empty .$(PREFIX)/$$folder; done
	@[ -z '$(DESTDIR)' ] || { cd $(DESTDIR)/ && rmdir -p .$(PREFIX)/sbin .$(PREFIX)/lib .$(PREFIX)/share/doc \
	    .$(PREFIX)/share/man/man5 .$(PREFIX)/share/man/man8 .$(UNITS) 2>/dev/null || :; }
	@echo 'ddpd is uninstalled. What is yours stays: /etc/ddpd.conf, /etc/ddpd and /var/lib/ddpd (configuration, key, leases).'

# It may do to the network what ddpd.conf says, write where it keeps things, and no more.  Who has a hook that does
# more gives it to the unit by `systemctl edit ddpd`.  A wireguard-go that it has started lives on, as in a restart.
define UNIT
[Unit]
Description=Distributed prefix daemon
Documentation=man:ddpd(8) man:ddpd.conf(5) file:$(PREFIX)/share/doc/ddpd/README.md
ConditionPathExists=/etc/ddpd.conf
After=network-pre.target
Before=network-online.target

[Service]
Type=exec
ExecStart=$(PREFIX)/sbin/ddpd
ExecReload=/bin/kill -HUP $$MAINPID
KillMode=process
Restart=always
RestartSec=5
TimeoutStopSec=10
StateDirectory=ddpd
StateDirectoryMode=0700
ConfigurationDirectory=ddpd
ConfigurationDirectoryMode=0700
ReadWritePaths=/etc/ddpd
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE
NoNewPrivileges=yes
ProtectSystem=full
ProtectHome=yes
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectProc=invisible
DevicePolicy=closed
DeviceAllow=/dev/net/tun rw
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service

[Install]
WantedBy=multi-user.target
endef
export UNIT

.PHONY: help demo demo-vps test check lint type netns soak seeds fuzz bench docs toc ipk apk install uninstall
.NOTPARALLEL:

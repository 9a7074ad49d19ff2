# vdsmstore: `make demo` and `make test` are the two to know; they install what they need on Debian.

SHELL = /bin/bash
PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
DATADIR ?= $(PREFIX)/share
DESTDIR ?=
export CARGO_TARGET_DIR ?= $(CURDIR)/target
export PATH := $(PATH):$(HOME)/.cargo/bin
RELEASE = $(CARGO_TARGET_DIR)/release
VERSION = $(shell sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"$$/\1/p' Cargo.toml)

.PHONY: help setup build demo test fuzz soak bench install lab fmt lint clean

help:
	@echo "make demo     two repositories, snapshots, copies, checked by QEMU (two minutes after the build)"
	@echo "make test     everything that CI runs; STAGES=\"rust c\" runs only those"
	@echo "make soak     the random tests, killed hosts and power cuts, SOAK=10 times as much: hours"
	@echo "make fuzz     SECONDS=600 for each target: docs/testing.md"
	@echo "make build    the release build: command line, shared library"
	@echo "make install  PREFIX=$(PREFIX) DESTDIR=$(DESTDIR)"
	@echo "make setup    install what development needs (Debian; as root)"
	@echo "make bench    measure against qemu-img and bare system calls (20 minutes; BENCH=full: more): docs/benchmarks.md"
	@echo "make lab      power cuts, in virtual machines (as root); PARTS=\"power moves nfs\": docs/lab.md"
	@echo "make fmt lint clean"

setup:
	@scripts/setup test

build:
	@scripts/setup build
	cargo build --release -p vdsmstore-cli -p vdsmstore-ffi
	sh crates/ffi/link.sh $(RELEASE)/libvdsmstore.a $(RELEASE)/shared

demo:
	@scripts/setup demo
	cargo build --release -p vdsmstore-cli
	@VDSMSTORE=$(RELEASE)/vdsmstore scripts/demo

test:
	@scripts/setup test
	@scripts/test $(STAGES)

fuzz:
	@scripts/setup test
	@scripts/fuzz $(or $(SECONDS),600) $(TARGETS)

soak:
	@scripts/setup test
	@scripts/test soak

bench:
	@scripts/setup bench
	@scripts/bench

lab:
	@scripts/setup lab
	cargo build -p vdsmstore-lab
	@VDSMSTORE_LAB=$(CARGO_TARGET_DIR)/debug/vdsmstore-lab scripts/lab $(PARTS)

install: build
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(LIBDIR)/pkgconfig $(DESTDIR)$(INCLUDEDIR) \
	    $(DESTDIR)$(DATADIR)/man/man1 $(DESTDIR)$(DATADIR)/bash-completion/completions \
	    $(DESTDIR)$(DATADIR)/zsh/site-functions $(DESTDIR)$(DATADIR)/fish/vendor_completions.d
	install -m 755 $(RELEASE)/vdsmstore $(DESTDIR)$(PREFIX)/bin/
	install -m 644 include/vdsmstore.h $(DESTDIR)$(INCLUDEDIR)/
	install -m 644 $(RELEASE)/shared/libvdsmstore.so.$(VERSION) $(DESTDIR)$(LIBDIR)/
	cp -P $(RELEASE)/shared/libvdsmstore.so $(RELEASE)/shared/libvdsmstore.so.$(firstword $(subst ., ,$(VERSION))) \
	    $(DESTDIR)$(LIBDIR)/
	install -m 644 $(RELEASE)/libvdsmstore.a $(DESTDIR)$(LIBDIR)/
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' -e 's|@INCLUDEDIR@|$(INCLUDEDIR)|' \
	    -e 's|@VERSION@|$(VERSION)|' packaging/vdsmstore.pc.in > $(DESTDIR)$(LIBDIR)/pkgconfig/vdsmstore.pc
	chmod 644 $(DESTDIR)$(LIBDIR)/pkgconfig/vdsmstore.pc
	$(RELEASE)/vdsmstore generate man $(DESTDIR)$(DATADIR)/man/man1
	rm -rf $(RELEASE)/completions && mkdir $(RELEASE)/completions
	$(RELEASE)/vdsmstore generate completions $(RELEASE)/completions
	install -m 644 $(RELEASE)/completions/vdsmstore.bash \
	    $(DESTDIR)$(DATADIR)/bash-completion/completions/vdsmstore
	install -m 644 $(RELEASE)/completions/_vdsmstore $(DESTDIR)$(DATADIR)/zsh/site-functions/
	install -m 644 $(RELEASE)/completions/vdsmstore.fish $(DESTDIR)$(DATADIR)/fish/vendor_completions.d/
	@[ -n "$(DESTDIR)" ] || [ "$$(id -u)" != 0 ] || ldconfig

fmt:
	cargo fmt --all

lint:
	@scripts/setup test
	@scripts/test lint

clean:
	cargo clean
	rm -rf .venv

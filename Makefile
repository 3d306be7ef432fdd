# `make help` says what there is. Needs Python 3.11 or newer, and Java 17 or newer with Maven for a Kafka of its own;
# services that DATABASE_URL, REDIS_URL and KAFKA_BOOTSTRAP_SERVERS name are used instead of being started.

SHELL := /bin/sh
VENV := .venv
INSTALLED := $(VENV)/.installed
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help demo test lint up down
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## a flash sale on real processes, with its verdict; DEMO_EXIT=1 ends it after that
	@SECRET_KEY="$${SECRET_KEY:-$$(openssl rand -hex 32)}" \
	  exec python -m devstack run --name demo --fresh -- python manage.py demo


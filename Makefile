# `make help` lists the targets. Needs Python 3.11 or newer and, to start Kafka, Java 17 or newer with Maven.
# Services that DATABASE_URL, REDIS_URL and KAFKA_BOOTSTRAP_SERVERS name are used instead of being started.

SHELL := /bin/sh
VENV := .venv
INSTALLED := $(VENV)/.installed
PYTHONS := python3.11 python3.12 python3.13 python3 python
WITH_VENV := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
# Settings for commands that make no connection.
OFFLINE := SECRET_KEY=for-checks-only-which-connect-to-nothing-and-sign-nothing DEBUG= \
	DATABASE_URL=postgres://unused@127.0.0.1:9/none REDIS_URL=redis://127.0.0.1:9/0 KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:9
# What the image holds: it imports runtime dependencies only.
PRODUCT := common coupons couponsite kafka_bridge orders
# Tests wait about half of the time, so two files run in parallel; ARGS="-n 0 -s" runs them serially and shows prints.
LANES := -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo test bench fuzz lint lock openapi up down

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED) ## run a flash sale on real processes, or SEED=001 a document's story; stays up unless DEMO_EXIT=1
	@export $(WITH_VENV) SECRET_KEY="$${SECRET_KEY:-$$($(VENV)/bin/python -c 'import secrets; print(secrets.token_hex())')}"; \
	export DEVSTACK_NAME="demo$${SEED:+-$$SEED}"; \
	case "$$SEED" in \
	  "") ;; \
	  000|001|002|003|004) set -a; . "./seeds/seed-$$SEED.env"; set +a ;; \
	  *) echo "make: there is no document '$$SEED': use SEED=000, 001, 002, 003 or 004" >&2; exit 1 ;; \
	esac; \
	exec python -m devstack run --fresh -- python manage.py demo $(ARGS)

test: $(INSTALLED) ## run the tests on real services; ARGS="tests/edge -k token" selects some
	@export $(WITH_VENV) SECRET_KEY=for-tests-only-which-sign-nothing-of-value DEBUG= SECURE_SSL_REDIRECT=False; \
	exec python -m devstack run --name test -- python -m pytest $(LANES) $(ARGS)

bench: $(INSTALLED) ## measure ratios on real services in about ten minutes; ARGS="--only accept --rows 5000000"
	@export $(WITH_VENV) SECRET_KEY=for-benchmarks-only-which-sign-nothing-of-value DEBUG= SECURE_SSL_REDIRECT=False; \
	exec python -m devstack run --name bench --fresh -- python -m benchmarks $(ARGS)

fuzz: $(INSTALLED) ## send hostile input over HTTP, Kafka and Redis for an hour; ARGS="--seconds 60 --seed 1"
	@export $(WITH_VENV) SECRET_KEY=for-the-fuzz-only-which-signs-nothing-of-value DEBUG= SECURE_SSL_REDIRECT=False; \
	exec python -m devstack run --name fuzz --fresh -- python -m fuzz $(ARGS)

lint: $(INSTALLED) ## check style, types, layers, dependencies, migrations, API schema and deployment settings
	@export $(WITH_VENV) $(OFFLINE); set -e; \
	ruff check .; \
	ruff format --check .; \
	mypy .; \
	lint-imports; \
	deptry $(PRODUCT); \
	deptry . --non-dev-dependency-groups dev; \
	python -W ignore::RuntimeWarning manage.py makemigrations --check --dry-run; \
	python manage.py spectacular --validate --fail-on-warn --file /dev/null; \
	python manage.py check --deploy --fail-level WARNING

lock: $(INSTALLED) ## rewrite the requirements from pyproject.toml; ARGS=--upgrade for newer indirect dependencies
	@export $(WITH_VENV); set -e; \
	lock="uv pip compile pyproject.toml --universal --generate-hashes --quiet $(ARGS)"; \
	$$lock --custom-compile-command 'make lock' --output-file requirements.txt; \
	$$lock --custom-compile-command 'make lock' --group dev --constraints requirements.txt \
	  --output-file requirements-dev.txt

openapi: $(INSTALLED) ## check the OpenAPI document against Redocly's recommended rules; needs Node 20 or newer with npm
	@export $(WITH_VENV) $(OFFLINE) REDOCLY_TELEMETRY=off REDOCLY_SUPPRESS_UPDATE_NOTICE=true; set -e; \
	document=$$(mktemp); trap 'rm -f "$$document"' EXIT; \
	python manage.py spectacular --validate --fail-on-warn --format openapi-json --file "$$document"; \
	npx --yes @redocly/cli@2.77.0 lint --extends recommended-strict "$$document"

up: $(INSTALLED) ## start PostgreSQL, Redis and Kafka and print their addresses as shell exports
	@$(WITH_VENV) python -m devstack up

down: $(INSTALLED) ## stop what `make up` started
	@$(WITH_VENV) python -m devstack down

$(INSTALLED): requirements-dev.txt
	@for python in $(PYTHONS); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "make: Python 3.11 or newer is missing: install it" >&2; exit 1; fi; \
	echo "installing requirements-dev.txt into $(VENV), which may take minutes" >&2; \
	if ! "$$found" -m venv $(VENV); then echo "make: $$found cannot create $(VENV): install its venv module" >&2; exit 1; fi; \
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	  -r requirements-dev.txt
	@touch $@

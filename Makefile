# Every target does the set-up it needs; `make env` alone makes .venv.
PYTHON_VENV := .venv/bin/python
# Nothing here ever fetches a model or a data set.
export HF_HUB_OFFLINE := 1

.PHONY: help env serve docs test test-all check accuracy bench soak fuzz constraints manifests clean
.DEFAULT_GOAL := help

help:
	@echo "make env                 the pinned environment in .venv"
	@echo "make serve ARGS='...'    the LED server; without --model-path it serves the embedded model"
	@echo "make docs                the documentation as a site with search, in out/site"
	@echo "make test                the quick tests, by two workers; ARGS='...' for other pytest arguments, by one"
	@echo "make test-all            every test, in about an hour"
	@echo "make check               lint, types, import rules"
	@echo "make accuracy ARGS='...' the embedded model on 500 held-out problems (without a server)"
	@echo "make bench ARGS='...'    LED on against LED off on this machine"
	@echo "make soak MINUTES=10     a server under mixed load, aborts and bad requests, then an audit (docs/reliability.md)"
	@echo "make fuzz ARGS='...'     5,000 bad requests, every one refused"
	@echo "make constraints         write constraints.txt from .venv"
	@echo "make manifests           write patches/*.json again from the released wheels"
	@echo "make clean               remove .venv, caches and build products"

env:
	@scripts/make_env

serve: env
	@exec $(PYTHON_VENV) -m led_sglang serve --led-log out/serve.log $(ARGS)

docs: env
	@NO_MKDOCS_2_WARNING=1 $(PYTHON_VENV) -m mkdocs build --strict --quiet && \
		echo "docs: built in out/site; python3 -m http.server --directory out/site 8000 shows it at http://127.0.0.1:8000"

test: env
	@exec $(PYTHON_VENV) -m pytest $(or $(ARGS),-n 2 -m quick)

test-all: env
	@exec $(PYTHON_VENV) -m pytest --full $(or $(ARGS),-n 2)

check: env
	@scripts/check

accuracy: env
	@exec $(PYTHON_VENV) -m training.evaluate $(or $(ARGS),--offline)

bench: env
	@exec $(PYTHON_VENV) -m benchmarks.bench_server $(ARGS)

soak: env
	@exec $(PYTHON_VENV) -m benchmarks.soak --minutes $(or $(MINUTES),10) $(ARGS)

fuzz: env
	@exec $(PYTHON_VENV) -m benchmarks.fuzz $(ARGS)

constraints: env
	@scripts/freeze

manifests: env
	@scripts/manifests

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

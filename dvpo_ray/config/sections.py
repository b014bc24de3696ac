"""The sections shared by the recipes: where a run lives, what it starts from, and how its processes are laid out."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, StringConstraints, field_validator, model_validator

from dvpo_ray.config.backends import BackendSettings, DeepSpeedSettings
from dvpo_ray.config.base import (
    DataSource,
    FixedOnResume,
    ModelFolder,
    PathField,
    PythonFunction,
    Secret,
    Section,
    WrittenPlace,
)

Auto = Literal["auto"]
NumberType = Literal["bfloat16", "float32"]
Dtype = Auto | NumberType
Attention = Literal["auto", "eager", "sdpa", "flash_attention_2"]
T = TypeVar("T")
AUTO_DTYPE = "`auto` is bfloat16 where every node of the role multiplies it faster than float32, else float32."
TokenBudget = Annotated[int, Field(ge=16)]
Share = Annotated[float, Field(ge=0, le=1)]
Names = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
# A model of the Hub with a branch, tag or commit in its name.
NAME_AT_REVISION = re.compile(r"([\w.-]+/[\w.-]+)@([\w./-]+)")
RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
MAX_BAD_SHARE = 0.05
# What `apply_chat_template` of transformers takes by these names is not the template's.
TEMPLATE_OWN = frozenset(
    {
        *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message"),
        *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
        "tokenizer_kwargs",
    }
)


def settled(value: T | Auto) -> T:
    """A setting for which `auto` may be written, once `dvpo_ray.planning.device_defaults` has decided it."""
    assert value != "auto", "device defaults are decided before a recipe is used"
    return value


class RunSection(Section):
    """Identity of a run and where its files go."""

    name: str = Field("run", pattern=RUN_NAME, description="Name of the run; its folder is `output_dir/name`.")
    output_dir: PathField = Field(default="runs", description="Folder that holds the runs.")  # type: ignore[assignment]
    seed: FixedOnResume[int] = Field(0, ge=0, le=2**31 - 1, description="Seed of sampling, shuffling and initialisation.")
    overwrite: bool = Field(False, description="Replace an earlier run of this name instead of refusing to start.")
    resume: str = Field(
        "never",
        min_length=1,
        description="`auto` goes on from the newest whole checkpoint of this run, or starts when there is none; a checkpoint's "
        "folder starts from that one; `never` starts anew.",
    )
    keep_trajectories_mib: int = Field(
        64,
        ge=0,
        description="Most space for a sample of the rows that a policy was trained on, in the run's folder "
        "(`trajectories/`), in MiB, spread over its steps; 0 keeps none.",
    )


class ClusterSection(Section):
    """The Ray cluster that a run uses."""

    address: str | None = Field(
        None, description="Ray address (`auto`, `host:port`); none starts a small embedded Ray and stops it at the end."
    )
    num_cpus: int = Field(8, ge=1, description="Logical CPUs of an embedded Ray; actors ask for one each.")
    object_store_mb: int = Field(256, ge=80, description="Object store of an embedded Ray, in MiB.")
    dashboard: bool = Field(False, description="Start the Ray dashboard (loopback only) with an embedded Ray.")
    role_label: str | None = Field(
        None,
        description="Label of Ray nodes that says what they are for (rollout, scorer, learner): actors go to nodes of their "
        "role; none places them anywhere.",
    )
    start_timeout_s: float = Field(300.0, gt=0, description="Longest wait for an actor to be ready, in seconds.")
    call_timeout_s: float = Field(600.0, gt=0, description="Longest wait for one stage call, in seconds.")

    @model_validator(mode="after")
    def _validate_address(self) -> Self:
        if self.address and self.address.startswith("ray://"):
            raise ValueError(
                f"address '{self.address}' is that of Ray Client, which cannot stream answers: run the driver on a machine of "
                "the cluster (as a Ray job, or with address = 'auto')"
            )
        return self


class ModelSection(Section):
    """The language model that is aligned, and from which the value model is grown."""

    @field_validator("path")
    @classmethod
    def _refuse_revision_in_name(cls, path: str) -> str:
        named = NAME_AT_REVISION.fullmatch(path)
        if named and not Path(path).exists():
            raise ValueError(f"'{path}': write the name alone, '{named[1]}', and revision = '{named[2]}' below it")
        return path

    path: FixedOnResume[ModelFolder] = Field(
        "smollm2-135m-instruct",
        description="Folder with safetensors, config and tokenizer, or the name of a model on the Hugging Face Hub (`org/name`), "
        "which is pulled into its cache; `smollm2-135m-instruct` is the packaged demo model.",
    )
    revision: str | None = Field(
        None,
        min_length=1,
        description="Branch, tag or commit of a model of the Hub; none is `main`. A run keeps the commit that it began with.",
    )
    chat_template_kwargs: FixedOnResume[dict[str, bool | int | float | str]] = Field(
        {},
        description="Arguments of the chat template, `{enable_thinking = false}` for example, wherever it is applied. A value "
        "model remembers those that it was trained with.",
    )
    attention: Attention = Field(
        "auto",
        description="Attention kernel of learner and scorer; `auto` takes `sdpa`, and on CPU `eager` for rows of up to 256 "
        "tokens, where it is faster. `flash_attention_2` needs the package flash-attn. Models that cap their attention logits "
        "(Gemma 2) get `eager` for `sdpa`, which has no cap.",
    )
    share_prefix: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Read the common beginning of a micro-batch's rows (a system prompt, the prompt of several answers) once, in "
        "a pass of its own. `auto` does so on CPU; on a GPU a second pass costs more launches than it saves arithmetic.",
    )
    packing: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Lay the rows of a micro-batch end to end instead of padding them. `auto` does so with `flash_attention_2`; "
        "other kernels then compute attention between all rows and mask it, which costs more than padding.",
    )
    trust_remote_code: bool = Field(False, description="Run Python code found in the model folder.")

    @field_validator("chat_template_kwargs", mode="before")
    @classmethod
    def _validate_template_arguments(cls, given: Any) -> Any:
        for name, value in given.items() if isinstance(given, dict) else ():
            if not name.isidentifier() or name in TEMPLATE_OWN:
                what = "is filled in by this service" if name in TEMPLATE_OWN else "is no name of a template's variable"
                raise ValueError(f"'{name}' {what}: leave it out")
            if not isinstance(value, bool | int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
                raise ValueError(f"{name} = {value!r:.80}: expected text, a finite number, true or false")
        return given

    @property
    def packed(self) -> bool:
        """Whether micro-batches are packed."""
        return self.packing == "on" or (self.packing == "auto" and self.attention == "flash_attention_2")


class SourceSection(Section):
    """Where rows come from."""

    source: FixedOnResume[DataSource] = Field(
        description="File (JSON lines, JSON, CSV, TSV or Parquet; text also as .gz), folder, `package:NAME/PATH`, or Hugging "
        "Face dataset name.",
    )
    split: FixedOnResume[str | None] = Field(
        None, min_length=1, description="Split of a Hugging Face dataset, or of a folder of files named after splits."
    )
    subset: FixedOnResume[str | None] = Field(
        None,
        min_length=1,
        description="Subset (configuration) of a Hugging Face dataset; of a folder, the one in it of that name.",
    )
    data_dir: FixedOnResume[str | None] = Field(
        None, min_length=1, description="Folder within the dataset or folder that holds what is meant."
    )
    revision: FixedOnResume[str | None] = Field(
        None, min_length=1, description="Branch, tag or commit of a Hugging Face dataset."
    )
    format: str = Field(
        "auto",
        min_length=1,
        description="Shape of the rows, by its name in docs/datasets.md; `auto` recognises it from the columns.",
    )
    columns: dict[str, str] = Field(
        {},
        description='Columns that stand for those that shapes know: `{prompt = "ask", score = "meta.rating"}`.',
    )


class DataSection(SourceSection):
    """A dataset and what happens to rows that cannot be used."""

    max_prompt_tokens: int = Field(512, ge=1, description="Longest prompt, in tokens; longer rows are dead letters.")
    limit: int | None = Field(None, ge=1, description="Use at most this many good rows.")
    max_bad_share: float = Field(
        MAX_BAD_SHARE, ge=0, le=1, description="Share of rows that may be dead letters before the run refuses to start."
    )


class AnswersSection(DataSection):
    """Prompts with answers."""

    max_answer_tokens: int = Field(512, ge=1, description="Longest answer, in tokens.")
    overlong: Literal["reject", "truncate_answer"] = Field(
        "reject", description="Reject rows with too long an answer, or keep the first `max_answer_tokens` tokens of it."
    )

    @property
    def longest_row(self) -> int:
        """Longest prompt and answer together, in tokens."""
        return self.max_prompt_tokens + self.max_answer_tokens


class PairsSection(AnswersSection):
    """Preference pairs for value pretraining."""

    validation_source: DataSource | None = Field(
        None, description="Held-out pairs; without it they are taken from `source`, by `validation_split` or `validation_share`."
    )
    validation_split: str | None = Field(
        None,
        min_length=1,
        description="Split of `validation_source`; without that, another split of `source`, which is held out.",
    )
    validation_share: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of prompts held out when there is neither a `validation_source` nor a `validation_split`.",
    )

    @property
    def held_out_source(self) -> str:
        """Where held-out rows come from."""
        return self.source if self.validation_source is None else self.validation_source

    @model_validator(mode="after")
    def _validate_split(self) -> Self:
        if self.validation_source is None and self.validation_split is not None and self.validation_split == self.split:
            raise ValueError(
                f"validation_split and split are both '{self.split}': name another split of source, or give a validation_source"
            )
        return self


class EngineSection(Section):
    """One vLLM engine."""

    dtype: Dtype = Field("auto", description=f"Number type of weights and activations in the engine. {AUTO_DTYPE}")
    max_model_len: int = Field(1024, ge=16, description="Longest prompt plus answer, in tokens.")
    max_num_seqs: int = Field(64, ge=1, description="Most answers generated at the same time.")
    kv_cache_mib: Auto | Annotated[int, Field(ge=16)] = Field(
        "auto",
        description="KV cache of a CPU engine, in MiB. `auto` holds `max_num_seqs` rows of `max_model_len`, in at most an eighth "
        "of the memory; with less, answers wait for others to end.",
    )
    gpu_memory_utilization: float = Field(0.5, gt=0, le=1, description="Share of GPU memory on CUDA engines.")
    enforce_eager: bool = Field(True, description="Skip graph capture and compilation: slower decoding, faster start.")
    tensor_parallel: int = Field(1, ge=1, description="GPUs that share one engine.")
    prefix_caching: bool = Field(True, description="Reuse the KV cache of common prompt beginnings.")


class GenerationSection(Section):
    """How answers are generated."""

    actors: int = Field(1, ge=1, description="Rollout actors, one vLLM engine each.")
    max_new_tokens: int = Field(256, ge=1, description="Longest answer, in tokens.")
    temperature: float = Field(1.0, ge=0.01, le=10, description="Sampling temperature; vLLM knows none below 0.01.")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Nucleus sampling mass. Below 1, KL to the reference counts what the nucleus leaves out as well.",
    )
    top_k: int = Field(0, ge=0, description="Sample from so many of the likeliest tokens; 0 takes all.")
    min_p: float = Field(
        0.0, ge=0, le=1, description="Leave out tokens that are less likely than this share of the likeliest one."
    )
    repetition_penalty: float = Field(
        1.0, gt=0, le=2, description="Divides the logits of tokens that prompt or answer have already; 1 leaves them alone."
    )
    stop: list[Annotated[str, StringConstraints(min_length=1)]] = Field(
        [], description="Texts that end an answer, which holds them; besides the model's own ends of turn."
    )
    row_timeout_s: float = Field(
        300.0,
        gt=0,
        description="Longest time in which an engine finishes no answer, in seconds: one that does is taken for hung.",
    )
    max_restarts: int = Field(
        3, ge=0, description="Times a rollout actor that died or hangs is replaced; its unfinished rows are asked of the others."
    )
    max_row_attempts: int = Field(
        3, ge=1, description="Missed deadlines after which a row is given up; its engine is replaced each time."
    )
    cpu_threads: int = Field(0, ge=0, description="CPU threads of an engine; 0 takes all cores.")
    gpu_share: float | None = Field(
        None, gt=0, le=1, description="GPU that an engine on one GPU reserves; none is `engine.gpu_memory_utilization`."
    )
    max_probe_gap: Annotated[float, Field(gt=0)] | Auto = Field(
        "auto",
        description="Largest mean absolute gap between the log-probs of engines and learner, in nats a token. A training "
        "compares them on a few tokens when both have started and after the first weight update, and ends when it is larger. "
        "`auto` is 0.001 where both compute in float32 and engines run on CPU, else 0.15.",
    )
    engine: EngineSection = Field(default_factory=lambda: EngineSection(), description="The vLLM engine.")

    @property
    def filters(self) -> list[str]:
        """The settings that make an engine sample from another distribution than the model's at its temperature."""
        neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        return [name for name, value in neutral.items() if getattr(self, name) != value]


class RolloutSection(GenerationSection):
    """How answers are generated that are trained on."""

    prompts_per_step: FixedOnResume[int] = Field(32, ge=1, description="Prompts of one training step.")
    answers_per_prompt: FixedOnResume[int] = Field(1, ge=1, description="Answers sampled for each prompt.")

    @property
    def rows_per_step(self) -> int:
        """Answers of one training step."""
        return self.prompts_per_step * self.answers_per_prompt


class ScorerSection(Section):
    """Frozen value model and frozen reference model."""

    actors: int = Field(1, ge=1, description="Scorer actors; each holds the value model and the reference model.")
    max_actors: int | None = Field(
        None, ge=1, description="Start more scorers, up to so many, while answers wait for one; none keeps their number."
    )
    scale_up_after_s: float = Field(
        5.0, ge=0, description="Longest wait of answers for a scorer before one more is started, in seconds."
    )
    scale_down_after_s: float = Field(
        60.0, gt=0, description="A scorer beyond `actors` that had no work for so long is ended, in seconds."
    )
    cache_mib: int = Field(
        64, ge=0, description="Memory of a scorer for scores it has given, which are not computed again, in MiB."
    )
    dtype: Dtype = Field("auto", description=f"Number type of the frozen models. {AUTO_DTYPE}")
    rows_per_call: int = Field(32, ge=1, description="Answers sent to a scorer together, as soon as so many are finished.")
    token_budget: Auto | TokenBudget = Field(
        "auto", description="Most tokens, padding included, in one forward pass. `auto`: 4,096 on CPU, up to 32,768 on a GPU."
    )
    max_padding: Auto | Share = Field(
        "auto",
        description="Largest share of padding in forward passes; less padding makes more and smaller ones. `auto`: 0.3 on CPU; "
        "no limit on a GPU, which small passes leave idle.",
    )
    cpu_threads: int = Field(0, ge=0, description="CPU threads of a scorer; 0 takes all cores.")
    gpu_share: float = Field(0.2, gt=0, le=1, description="GPU that a scorer reserves.")
    max_restarts: int = Field(
        3, ge=0, description="Times a scorer that died is started again; what it had not scored is scored again."
    )

    @model_validator(mode="after")
    def _validate_actors(self) -> Self:
        if self.max_actors is not None and self.max_actors < self.actors:
            raise ValueError(f"max_actors ({self.max_actors}) is smaller than actors ({self.actors})")
        return self


class LearnerSection(Section):
    """Distributed optimisation."""

    ranks: int = Field(1, ge=1, description="Learner processes.")
    backend: BackendSettings = Field(
        default_factory=DeepSpeedSettings, description="What runs passes and steps, and shares the state of training among ranks."
    )
    dtype: Dtype = Field("auto", description=f"Compute type; master weights and optimizer state are always float32. {AUTO_DTYPE}")
    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate.")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="Learning rate after warm-up.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")
    betas: Annotated[tuple[float, float], Field(strict=False)] = Field((0.9, 0.95), description="Adam decay rates.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    grad_clip: float = Field(1.0, gt=0, description="Largest global gradient norm.")
    token_budget: Auto | TokenBudget = Field(
        "auto",
        description="Most tokens, padding included, in one micro-batch of a rank. `auto`: 1,024 on CPU and up to 16,384 on a GPU "
        "(as many as a quarter of its memory holds the activations of), or one row where that is longer.",
    )
    max_padding: Auto | Share = Field(
        "auto",
        description="Largest share of padding in micro-batches; less padding makes more and smaller ones. `auto`: 0.15 on CPU; "
        "no limit on a GPU, which small passes leave idle.",
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass to save memory.")
    cpu_threads: int = Field(0, ge=0, description="CPU threads of a rank; 0 takes all cores.")
    gpu_share: float | None = Field(
        None, gt=0, le=1, description="GPU that a rank reserves; none is 0.3 for an only rank and 1 for several."
    )
    max_restarts: int = Field(
        3,
        ge=0,
        description="Times the ranks are started again after one died or hung; training goes on from the last checkpoint.",
    )
    max_skipped_updates: int = Field(
        3, ge=0, description="Updates in a row that may be withheld for NaN or Inf before the run stops."
    )

    @model_validator(mode="after")
    def _validate_backend(self) -> Self:
        self.backend.check(self)
        return self


class LoraSection(Section):
    """Low-rank adapters: the model stays as it is, only small matrices beside its linear layers are trained and travel."""

    rank: FixedOnResume[int] = Field(
        16, ge=1, description="Rank of the adapters; more of it learns more, and costs more memory and transfer."
    )
    alpha: FixedOnResume[int] = Field(32, ge=1, description="Adapters count `alpha / rank` times; change it with the rank.")
    rslora: FixedOnResume[bool] = Field(False, description="Count adapters `alpha / sqrt(rank)` times instead, for high ranks.")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of an adapter's inputs left out in passes with gradients, never in old log-probs."
    )
    target_modules: FixedOnResume[Literal["all-linear"] | Names] = Field(
        "all-linear",
        description="Names of the linear layers that get adapters, as in `q_proj`; `all-linear` takes all but the output head.",
    )

    @property
    def scale(self) -> float:
        """What the product of an adapter's two matrices is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class PtxSection(Section):
    """The pretraining loss of PPO-ptx (arXiv 2203.02155, section 3.5; part of PPO-max, arXiv 2307.04964), with any estimator."""

    data: FixedOnResume[AnswersSection] = Field(
        description="Prompts with good answers: rows with `prompt` and `completion`, or preference pairs, whose chosen answer is "
        "taken."
    )
    coefficient: float = Field(0.05, gt=0, description="Weight gamma of the mean cross-entropy of an answer token.")
    rows_per_step: FixedOnResume[int] = Field(16, ge=1, description="Rows of one optimizer step.")


class CheckpointSection(Section):
    """Checkpoints: what a run needs to go on after a failure (`run.resume`)."""

    every: int = Field(25, ge=0, description="Steps from one checkpoint to the next, and one after the last; 0 makes none.")
    keep_last: int = Field(2, ge=1, description="Newest checkpoints that are kept.")
    keep_every: int = Field(0, ge=0, description="Checkpoints of every so many steps are kept as well; 0 keeps no others.")
    keep_best: int = Field(
        0,
        ge=0,
        description="So many checkpoints with the best held-out score are kept as well, by mean gold, or without "
        "`evaluation.gold` by the mean last value, which is also what training raises; only those of steps that "
        "`evaluation.every` evaluates.",
    )
    copy_to: WrittenPlace | None = Field(
        None,
        min_length=1,
        description="URL (`s3://`, `gs://`, `file://`, ...) of a folder of this run's own to which every checkpoint is copied; "
        '`run.resume = "auto"` fetches the newest from there when the run\'s folder has none or older ones.',
    )
    copy_attempts: int = Field(3, ge=1, le=10, description="Times a copy is tried before it is given up with a warning.")
    copy_wait_s: float = Field(600.0, gt=0, description="Longest wait at the run's end for the last copy, in seconds.")

    @field_validator("copy_to")
    @classmethod
    def _validate_copy_to(cls, url: str | None) -> str | None:
        if url is not None and re.search(r"(?:^|::)memory:", url):
            raise ValueError(f"'{url}' is the memory of the driver, which ends with it: give the URL of a place that stays")
        return url

    @model_validator(mode="after")
    def _validate_every(self) -> Self:
        idle = [name for name in ("keep_best", "copy_to") if getattr(self, name) and not self.every]
        if idle:
            raise ValueError(f"{' and '.join(idle)} without effect: every = 0 makes no checkpoints; set checkpoint.every")
        return self


AUTO, SHARED_MEMORY, OBJECT_STORE, BROADCAST = "auto", "shared_memory", "object_store", "broadcast"


class TransferSection(Section):
    """How new weights travel from the learner to the engines."""

    backend: Literal["auto", "shared_memory", "object_store", "broadcast"] = Field(
        "auto",
        description="Shared memory (one node), Ray's object store (several nodes), or with `auto` the first where it will do; "
        "`broadcast` sends to all engines at once, by NCCL from GPU to GPU (learner and engines each on their own) or by Gloo.",
    )
    broadcast_timeout_s: float = Field(
        60.0, gt=0, description="Longest wait for all engines to meet for a broadcast, and for a bucket to arrive, in seconds."
    )
    bucket_mib: int = Field(
        512,
        ge=1,
        description="Weights travel in buckets of this many MiB, the extra memory of a transfer; a larger tensor travels alone. "
        "Damage in the first bucket leaves the engines as they were, damage in later ones is sent again or fences them.",
    )

    def check_gpus(self, rollout: GenerationSection, learner: LearnerSection) -> None:
        """Refuse a broadcast between processes that may be put on one GPU, which NCCL cannot do.

        Raises:
            ValueError: naming what to set.
        """
        if self.backend != BROADCAST:
            return
        shares = {
            "rollout.gpu_share": 1.0 if rollout.engine.tensor_parallel > 1 else rollout.gpu_share,
            "learner.gpu_share": learner.gpu_share or (1.0 if learner.ranks > 1 else None),
        }
        small = [name for name, share in shares.items() if share != 1.0]
        if small:
            raise ValueError(
                f"transfer.backend = 'broadcast' needs engines and learner on GPUs of their own: set {' and '.join(small)} to 1 "
                "(nothing changes without GPUs), or choose another backend"
            )


class EvaluationSection(SourceSection):
    """Held-out evaluation of a policy."""

    source: FixedOnResume[DataSource] = Field(
        description="Prompts to answer, disjoint from those trained on: any source that data may have."
    )
    max_prompts: FixedOnResume[int] = Field(64, ge=1, description="Use at most this many prompts.")
    answers_per_prompt: FixedOnResume[int] = Field(1, ge=1, description="Answers sampled for each prompt.")
    gold: PythonFunction | None = Field(
        None,
        description="`package.module:function` of (prompts, answers) -> scores; measured, never trained on. Prompts are "
        "their last turns alone.",
    )
    every: int = Field(0, ge=0, description="Also evaluate every so many steps; 0 evaluates only before and after.")

    @property
    def compared_by(self) -> str:
        """What the score of a step is by which `checkpoint.keep_best` compares it with others."""
        return "mean gold" if self.gold else "mean last value of the frozen value model"


class TrackingSection(Section):
    """Where metrics go, besides `metrics.jsonl` in the run's folder."""

    tensorboard: bool = Field(True, description="Write TensorBoard event files.")
    wandb_project: str | None = Field(None, description="Weights & Biases project (extra `wandb`).")
    wandb_api_key: Secret | None = Field(None, description="Weights & Biases key; else the environment's.")
    mlflow_uri: WrittenPlace | None = Field(None, description="MLflow tracking server or folder (extra `mlflow`).")

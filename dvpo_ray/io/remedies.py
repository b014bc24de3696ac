"""What refusals of engines and models have in common with keys of a recipe: which sentence asks for which change."""

from __future__ import annotations

import re

MEMORY_SHARED = (
    "lower rollout.engine.gpu_memory_utilization, or end the other programs on that GPU (`nvidia-smi`), or give the engine one "
    "of its own (rollout.gpu_share)"
)
ANOTHER_MODEL = "take a model.path whose architecture this vLLM serves (docs/models.md), or a newer vLLM"

# Sentences, mostly vLLM's, or frames where the sentence says too little, and what to change. The first that is found counts.
REMEDIES: tuple[tuple[str, str], ...] = (
    (
        r"max_model_len.*greater than the derived max_model_len",
        "lower rollout.engine.max_model_len to what the sentence derives, and data.max_prompt_tokens and rollout.max_new_tokens "
        "with it, or take a model.path with a longer context",
    ),
    (
        r"To serve at least one request with the model's max seq len|No available memory for the cache blocks",
        "raise rollout.engine.kv_cache_mib (engines on CPU) or rollout.engine.gpu_memory_utilization (on GPUs), or lower "
        "rollout.engine.max_model_len",
    ),
    (r"Free memory on device|Error in memory profiling", MEMORY_SHARED),
    (
        r"out of memory|[Cc]annot allocate memory|can't allocate memory|^MemoryError|std::bad_alloc",
        "of an engine lower rollout.engine.gpu_memory_utilization, kv_cache_mib or max_num_seqs, of a learner or scorer its "
        "token_budget; or end other programs",
    ),
    (
        r"No space left on device|Disk quota exceeded",
        "make room on the disk that the sentence or its place names (shared memory: /dev/shm; Ray: its temporary folder), and go "
        "on with --resume auto",
    ),
    (
        r"prompt \(length \d+\).*longer than the maximum|maximum context length is \d+ tokens",
        "lower data.max_prompt_tokens, or raise rollout.engine.max_model_len, which must hold prompt and answer",
    ),
    (
        r"Token id -?\d+ is out of vocabulary",
        "the rows were encoded with another tokenizer: take a model.path whose tokenizer and config.json (vocab_size) belong "
        "together",
    ),
    (r"temperature must|temperature .*(non-negative|greater)", "change rollout.temperature"),
    (r"\btop_p must", "change rollout.top_p"),
    (r"\btop_k must", "change rollout.top_k"),
    (r"\bmin_p must", "change rollout.min_p"),
    (r"repetition_penalty must", "change rollout.repetition_penalty"),
    (r"max_tokens must", "change rollout.max_new_tokens"),
    (r"stop cannot contain", "change rollout.stop"),
    (
        r"[Uu]nsupported CPU attention configuration|[Hh]ead size \S+ is not supported",
        "take a model.path with another size of attention heads (docs/models.md), or GPUs for the engines",
    ),
    (r"Model architectures? .*(not supported|failed to be inspected|has no vLLM implementation)", ANOTHER_MODEL),
    (r"does not recognize this architecture|Unrecognized model in", ANOTHER_MODEL),
    (
        r"requires you to execute the|trust_remote_code=True|contains custom code",
        "read the code in the model's folder, and if you trust it set model.trust_remote_code=true",
    ),
    (r"Bfloat16 is only supported on GPUs", "set rollout.engine.dtype (and the learner's and scorer's) to float16 or float32"),
    (
        r"dtype.* (is )?not supported|not supported for quantization|Unknown dtype|not implemented for '(Half|BFloat16)'",
        "set the dtype of that part (rollout.engine.dtype, scorer.dtype, learner.dtype) to one that the sentence allows, or to "
        "float32",
    ),
    (
        r"must be divisible by tensor parallel size",
        "set rollout.engine.tensor_parallel to a number that divides the model's attention heads",
    ),
    (r"must be greater than or equal to max_num_seqs", "lower rollout.engine.max_num_seqs"),
    (
        r"SafetensorError|safetensors.*(incomplete|invalid|header)",
        "a file of weights in model.path is damaged or cut short: copy the folder again",
    ),
    (
        r"[Cc]ouldn't instantiate the backend tokenizer|Can't load tokenizer|untagged enum ModelWrapper|"
        r"transformers/tokenization_\w+\.py:\d+ in _?from_pretrained",
        "the tokenizer in model.path cannot be read: copy its files (tokenizer.json, tokenizer_config.json) again, or save them "
        "anew with the transformers of this installation",
    ),
)
_COMPILED = tuple((re.compile(pattern), words) for pattern, words in REMEDIES)


def remedy(text: str) -> str:
    """What to change, by the key of the recipe, when an error has this text; empty when that is not known."""
    line = " ".join(text.split())
    return next((words for pattern, words in _COMPILED if pattern.search(line)), "")

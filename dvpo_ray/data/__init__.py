"""Datasets: reading, checking, encoding and splitting. Imports no torch, Ray, vLLM or DeepSpeed."""

from dvpo_ray.data.admission import LoadCounts, Reading
from dvpo_ray.data.chat_template import arguments_of, ignored_arguments, load_tokenizer
from dvpo_ray.data.dead_letters import DeadLetters
from dvpo_ray.data.encode import ChatEncoder, encode_prompt, template_hash, tokenizer_hash
from dvpo_ray.data.encoded import EncodedAnswer, EncodedDemonstration, EncodedPair, EncodedPrompt, Preference
from dvpo_ray.data.loading import load_demonstrations, load_pairs, load_preferences, load_prompts, refuse_if_too_bad
from dvpo_ray.data.sources import Source
from dvpo_ray.data.splits import disjoint, fingerprint, split_by_prompt
from dvpo_ray.data.turn_end import TurnEnd, turn_end
from dvpo_ray.data.turn_joins import TurnJoiner

__all__ = [
    "ChatEncoder",
    "DeadLetters",
    "EncodedAnswer",
    "EncodedDemonstration",
    "EncodedPair",
    "EncodedPrompt",
    "LoadCounts",
    "Preference",
    "Reading",
    "Source",
    "TurnEnd",
    "TurnJoiner",
    "arguments_of",
    "disjoint",
    "encode_prompt",
    "fingerprint",
    "ignored_arguments",
    "load_demonstrations",
    "load_pairs",
    "load_preferences",
    "load_prompts",
    "load_tokenizer",
    "refuse_if_too_bad",
    "split_by_prompt",
    "template_hash",
    "tokenizer_hash",
    "turn_end",
]

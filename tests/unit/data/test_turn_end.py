"""Which token ends a turn, for tokenizers and templates in the manner of families that differ in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors.rollout.actor import sampling_params, stop_ids
from dvpo_ray.config.sections import ModelSection, RolloutSection
from dvpo_ray.data import DeadLetters, TurnEnd, load_demonstrations, load_pairs, turn_end
from dvpo_ray.errors import ModelError
from jobs.models import base_model
from tests.unit.data.conftest import Family, Make

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
# Nothing is written after an assistant's words: `<|user|>` ends them.
GLM4 = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }} "
    "{{ eos_token }}{% endif %}{% endfor %}"
)
PLAIN = "{% for m in messages %}### {{ m['role'] }}:\n{{ m['content'] }}\n\n{% endfor %}### assistant:\n"

FAMILIES: dict[str, Family] = {
    "chatml": (CHATML, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>", ["<|im_end|>", "<|endoftext|>"],
               "<|im_end|>", ["<|endoftext|>", "<|im_end|>"]),
    # Qwen base models name the end of a text; the template ends turns with another token, which no config names.
    "chatml of a base model": (CHATML, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|endoftext|>", "<|endoftext|>",
                               "<|im_end|>", ["<|endoftext|>", "<|im_end|>"]),
    "gemma": (GEMMA, ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], "<eos>", ["<eos>", "<end_of_turn>"],
              "<end_of_turn>", ["<eos>", "<end_of_turn>"]),
    "phi3": (PHI3, ["<|endoftext|>", "<|assistant|>", "<|user|>", "<|end|>"], "<|endoftext|>",
             ["<|endoftext|>", "<|assistant|>", "<|end|>"], "<|end|>", ["<|endoftext|>", "<|assistant|>", "<|end|>"]),
    "glm4": (GLM4, ["<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>"], "<|endoftext|>",
             ["<|endoftext|>", "<|user|>", "<|observation|>"], "<|user|>", ["<|endoftext|>", "<|user|>", "<|observation|>"]),
    "llama3": (LLAMA3, ["<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|end_of_text|>",
               ["<|end_of_text|>", "<|eot_id|>"], "<|eot_id|>", ["<|end_of_text|>", "<|eot_id|>"]),
    "llama2, a space before the end": (LLAMA2, ["<s>", "</s>"], "</s>", "</s>", "</s>", ["</s>"]),
    "plain words around turns": (PLAIN, ["</s>"], "</s>", None, "</s>", ["</s>"]),
    "no template": ("", ["</s>"], "</s>", None, "</s>", ["</s>"]),
    "no template, and only a config": ("", ["</s>"], None, "</s>", "</s>", ["</s>"]),
    # An opening that no config stops at ends nothing.
    "an opening alone": (GLM4, ["</s>", "<|user|>", "<|assistant|>"], "</s>", "</s>", "</s>", ["</s>"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_the_end_of_a_turn_is_what_the_template_writes(name: str, make: Make) -> None:
    tokenizer, folder = make(FAMILIES[name])
    special, end, stops = FAMILIES[name][1], FAMILIES[name][4], FAMILIES[name][5]
    expected = TurnEnd(special.index(end), tuple(sorted(special.index(one) for one in stops)))
    assert turn_end(tokenizer, folder) == expected
    assert turn_end(tokenizer) == expected, "the folder that the tokenizer is from"
    assert stop_ids(folder, False) == expected.stop_ids
    asked = sampling_params(RolloutSection(), 0, expected.stop_ids)
    assert tuple(asked.stop_token_ids) == expected.stop_ids


@pytest.mark.parametrize("name", FAMILIES)
def test_encoded_answers_end_with_it_and_with_nothing_after_it(name: str, make: Make, tmp_path: Path) -> None:
    tokenizer, _ = make(FAMILIES[name])
    end = FAMILIES[name][4]
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"prompt": "p", "chosen": "good", "rejected": "bad"}) + "\n")
    limits: dict[str, Any] = {"max_prompt_tokens": 200, "max_answer_tokens": 50}
    with DeadLetters(None) as letters:
        pairs, _ = load_pairs(str(source), tokenizer, dead_letters=letters, **limits)
        demonstrations, _ = load_demonstrations(str(source), tokenizer, dead_letters=letters, **limits)
    # Llama 2's template has a space before an answer, which the model is to write.
    begins = ["Ġ"] if FAMILIES[name][0] == LLAMA2 else []
    assert tokenizer.convert_ids_to_tokens(list(pairs[0].chosen_ids)) == [*begins, "g", "o", "o", "d", end]
    assert tokenizer.convert_ids_to_tokens(list(pairs[0].rejected_ids)) == [*begins, "b", "a", "d", end]
    assert demonstrations[0].answer_ids == pairs[0].chosen_ids


def test_a_model_that_does_not_say_how_its_turns_end_is_refused(make: Make) -> None:
    tokenizer, folder = make((PLAIN, ["</s>", "<x>"], None, None, "", []))
    with pytest.raises(ModelError, match=r"writes no special token .* no eos_token, and its configs name no .*; set eos_token"):
        turn_end(tokenizer, folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 1]}')
    with pytest.raises(ModelError, match=r"name \[0, 1\] eos_token_id"):
        turn_end(tokenizer, folder)


def test_it_is_refused_before_anything_starts(make: Make) -> None:
    import torch
    from safetensors.torch import save_file

    _, folder = make((PLAIN, ["</s>"], None, None, "", []))
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="does not say which token ends an answer"):
        base_model(ModelSection(path=str(folder)))


@pytest.mark.parametrize("given", ['{"eos_token_id": "</s>"}', '{"eos_token_id": [1, -1]}', '{"eos_token_id": true}', "[]", "{"])
def test_a_config_that_names_no_ids_is_refused(given: str, make: Make) -> None:
    tokenizer, folder = make(FAMILIES["phi3"])
    (folder / "generation_config.json").write_text(given)
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        turn_end(tokenizer, folder)


def test_without_a_generation_config_the_models_config_counts(make: Make) -> None:
    tokenizer, folder = make(FAMILIES["glm4"])
    (folder / "generation_config.json").unlink()
    (folder / "config.json").write_text('{"text_config": {"eos_token_id": [0, 3, 5]}}')
    assert turn_end(tokenizer, folder) == TurnEnd(3, (0, 3, 5))


def test_a_template_that_refuses_such_conversations_leaves_the_end_of_sequence(make: Make) -> None:
    refuses = "{{ raise_exception('one turn only') }}"
    tokenizer, folder = make((refuses, ["</s>"], "</s>", None, "", []))
    assert turn_end(tokenizer, folder) == TurnEnd(0, (0,))


def test_all_that_shapes_sampling_reaches_the_engine() -> None:
    config = RolloutSection(top_p=0.9, top_k=40, min_p=0.1, repetition_penalty=1.2, stop=["###"])
    asked = sampling_params(config, 3, (7,))
    assert (asked.top_p, asked.top_k, asked.min_p, asked.repetition_penalty) == (0.9, 40, 0.1, 1.2)
    assert (asked.stop, asked.detokenize, asked.seed, asked.stop_token_ids) == (["###"], True, 3, [7])
    assert not sampling_params(RolloutSection(), 0).detokenize

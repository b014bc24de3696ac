"""A made-up example of each shape of rows that datasets have, and what must be read of it.

The table of docs/datasets.md is made of them: ``python -m scripts.dataset_shapes``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from dvpo_ray.data.messages import Message, Messages

ASK, GOOD, BAD = "How do I boil an egg?", "Seven minutes in boiling water.", "No idea."
HI = (Message("user", ASK),)
SYSTEM = "Be brief."
WITH_SYSTEM = (Message("system", SYSTEM), *HI)
Row = dict[str, Any]


def user(text: str = ASK) -> Row:
    return {"role": "user", "content": text}


def said(text: str) -> Row:
    return {"role": "assistant", "content": text}


def human(text: str = ASK) -> Row:
    return {"from": "human", "value": text}


def gpt(text: str) -> Row:
    return {"from": "gpt", "value": text}


def parts(text: str) -> list[Row]:
    return [{"type": "text", "text": text}]


def columns(*turns: Row) -> Row:
    return {key: [turn[key] for turn in turns] for key in ("role", "content")}


def hh(*answers: str) -> str:
    return "".join(f"\n\nHuman: {ASK}\n\nAssistant: {answer}" for answer in answers)


@dataclass(frozen=True)
class Example:
    """Rows of a dataset, and what they give: pairs of a better and a worse answer, answers in none with their labels, a
    demonstration, or prompts alone. ``rejected`` is what becomes of rows where pairs alone are wanted."""

    name: str
    shape: str
    rows: tuple[Row, ...]
    pairs: tuple[tuple[str, str], ...] = ()
    demonstration: str = ""
    prompt: Messages = HI
    rejected: tuple[tuple[str, int], ...] = ()
    labels: tuple[tuple[str, float], ...] = ()


def pair_of(name: str, shape: str, row: Row, prompt: Messages = HI) -> Example:
    return Example(name, shape, (row,), ((GOOD, BAD),), GOOD, prompt)


def demonstration_of(name: str, shape: str, row: Row, prompt: Messages = HI) -> Example:
    return Example(name, shape, (row,), (), GOOD, prompt)


def prompt_of(name: str, shape: str, row: Row, prompt: Messages = HI) -> Example:
    return Example(name, shape, (row,), (), "", prompt)


BOTH: Row = {"chosen": GOOD, "rejected": BAD}
PAIRS = (
    pair_of("Plain text", "pair", {"prompt": ASK} | BOTH),
    pair_of("TRL, explicit prompt", "pair", {"prompt": [user()], "chosen": [said(GOOD)], "rejected": [said(BAD)]}),
    pair_of(
        "Prompt beside whole conversations (UltraFeedback binarized, Tulu)",
        "pair",
        {"prompt": ASK, "chosen": [user(), said(GOOD)], "rejected": [user(), said(BAD)]},
    ),
    pair_of("One message as an object", "pair", {"prompt": user(), "chosen": said(GOOD), "rejected": said(BAD)}),
    pair_of(
        "Columns of messages",
        "pair",
        {"prompt": columns(user()), "chosen": columns(said(GOOD)), "rejected": columns(said(BAD))},
    ),
    pair_of(
        "Content in parts",
        "pair",
        {
            "prompt": [user() | {"content": parts(ASK)}],
            "chosen": [said(GOOD) | {"content": parts(GOOD)}],
            "rejected": [said(BAD) | {"content": parts(BAD)}],
        },
    ),
    pair_of("Transcript as prompt", "pair", {"prompt": f"\n\nHuman: {ASK}\n\nAssistant:"} | BOTH),
    pair_of("System column", "pair", {"system": SYSTEM, "prompt": ASK} | BOTH, WITH_SYSTEM),
    pair_of(
        "TRL, implicit prompt (Skywork, Capybara)",
        "pair_of_talks",
        {"chosen": [user(), said(GOOD)], "rejected": [user(), said(BAD)]},
    ),
    pair_of("HH-RLHF", "hh_transcripts", {"chosen": hh(GOOD), "rejected": hh(BAD)}),
    pair_of("Orca DPO", "pair_beside_question", {"system": SYSTEM, "question": ASK} | BOTH, WITH_SYSTEM),
    pair_of(
        "Alpaca pairs",
        "pair_beside_question",
        {"instruction": "Translate.", "input": "Ei"} | BOTH,
        (Message("user", "Translate.\n\nEi"),),
    ),
    pair_of(
        "LLaMA-Factory pairs with history",
        "pair_beside_question",
        {"instruction": ASK, "input": "", "history": [["Hi", "Hello."]]} | BOTH,
        (Message("user", "Hi"), Message("assistant", "Hello."), *HI),
    ),
    pair_of(
        "ShareGPT pairs",
        "pair_beside_talk",
        {"conversations": [human()], "chosen": gpt(GOOD), "rejected": gpt(BAD)},
    ),
    Example(
        "KTO",
        "labelled_answer",
        ({"prompt": ASK, "completion": BAD, "label": False}, {"prompt": ASK, "completion": GOOD, "label": True}),
        ((GOOD, BAD),),
        GOOD,
    ),
    Example(
        "KTO, all answers to a prompt of one kind",
        "labelled_answer",
        ({"prompt": ASK, "completion": GOOD, "label": True},),
        demonstration=GOOD,
        rejected=(("no_partner", 1),),
        labels=((GOOD, 1.0),),
    ),
    Example(
        "HelpSteer2",
        "rated_answer",
        tuple({"prompt": ASK, "response": text, "helpfulness": n, "verbosity": 1} for text, n in ((GOOD, 4), (BAD, 1))),
        ((GOOD, BAD),),
        GOOD,
    ),
    pair_of(
        "HelpSteer3",
        "helpsteer3",
        {"context": [user()], "response1": BAD, "response2": GOOD, "overall_preference": 2, "domain": "general"},
    ),
    Example(
        "UltraFeedback",
        "rated_answers",
        (
            {
                "instruction": ASK,
                "completions": [
                    {"response": BAD, "overall_score": 2.0},
                    {"response": "Some minutes.", "overall_score": 6.0},
                    {"response": GOOD, "overall_score": 9.0},
                ],
            },
        ),
        ((GOOD, BAD),),
        GOOD,
        labels=(("Some minutes.", 0.0),),
    ),
    pair_of(
        "Nectar",
        "rated_answers",
        {"prompt": f"\n\nHuman: {ASK}\n\nAssistant: ", "answers": [{"answer": BAD, "rank": 2.0}, {"answer": GOOD, "rank": 1.0}]},
    ),
    pair_of(
        "NeMo preference",
        "rated_answers",
        {
            "context": [user()],
            "completions": [{"rank": 0, "completion": [said(GOOD)]}, {"rank": 1, "completion": [said(BAD)]}],
        },
    ),
    pair_of("Several answers with scores", "answers_and_scores", {"prompt": ASK, "responses": [BAD, GOOD], "scores": [0.1, 0.9]}),
    pair_of(
        "PKU-SafeRLHF",
        "pku_saferlhf",
        {"prompt": ASK, "response_0": BAD, "response_1": GOOD, "better_response_id": 1, "safer_response_id": 1},
    ),
    pair_of("SHP", "shp", {"history": ASK, "human_ref_A": GOOD, "human_ref_B": BAD, "labels": 1, "score_ratio": 2.0}),
    pair_of(
        "OpenAI preference",
        "openai",
        {"input": {"messages": [user()]}, "preferred_output": [said(GOOD)], "non_preferred_output": [said(BAD)]},
    ),
    pair_of(
        "Arena battles",
        "arena",
        {"conversation_a": [user(), said(BAD)], "conversation_b": [user(), said(GOOD)], "winner": "model_b", "turn": 1},
    ),
    Example(
        "Arena battle without a winner",
        "arena",
        ({"conversation_a": [user(), said(BAD)], "conversation_b": [user(), said(GOOD)], "winner": "tie"},),
        rejected=(("tie", 1),),
        labels=((BAD, 0.0), (GOOD, 0.0)),
    ),
    Example(
        "Arena battle that both lose",
        "arena",
        ({"conversation_a": [user(), said(BAD)], "conversation_b": [user(), said("Never.")], "winner": "tie (bothbad)"},),
        rejected=(("tie", 1),),
        labels=((BAD, -1.0), ("Never.", -1.0)),
    ),
    pair_of(
        "Arena 55k",
        "two_responses",
        {
            "prompt": json.dumps([ASK, "Thanks!"]),
            "response_a": json.dumps([GOOD, "Welcome."]),
            "response_b": json.dumps([BAD, "Hm."]),
            "winner_model_a": 1,
            "winner_model_b": 0,
            "winner_tie": 0,
        },
    ),
    pair_of(
        "Two responses and a preference",
        "two_responses",
        {"prompt": ASK, "response_a": BAD, "response_b": GOOD, "preference": "B"},
    ),
    pair_of(
        "Summarize from feedback",
        "summarize_from_feedback",
        {
            "info": {"subreddit": "cooking", "title": "Eggs", "post": "I boiled one."},
            "summaries": [{"text": f" {BAD}"}, {"text": f" {GOOD}"}],
            "choice": 1,
        },
        (Message("user", "SUBREDDIT: cooking\n\nTITLE: Eggs\n\nPOST: I boiled one.\n\nTL;DR:"),),
    ),
    pair_of("Stack Exchange paired", "stack_exchange", {"question": ASK, "response_j": GOOD, "response_k": BAD}),
    pair_of(
        "WebGPT comparisons",
        "webgpt",
        {"question": {"full_text": ASK}, "answer_0": BAD, "answer_1": GOOD, "score_0": -1.0, "score_1": 1.0},
    ),
    pair_of("Alpaca comparison", "best_first", {"instruction": ASK, "input": "", "output": [GOOD, BAD]}),
    Example(
        "RewardBench 2",
        "several_chosen",
        ({"id": "7", "prompt": ASK, "chosen": [GOOD], "rejected": [BAD, "Never.", "Why?"]},),
        ((GOOD, BAD), (GOOD, "Never."), (GOOD, "Why?")),
        GOOD,
    ),
    pair_of(
        "Open Assistant trees",
        "open_assistant_tree",
        {
            "message_tree_id": "t",
            "prompt": {
                "text": ASK,
                "role": "prompter",
                "replies": [
                    {"text": BAD, "role": "assistant", "rank": 1, "replies": []},
                    {"text": GOOD, "role": "assistant", "rank": 0, "replies": []},
                ],
            },
        },
    ),
    Example(
        "Open Assistant messages",
        "open_assistant_messages",
        (
            {"message_id": "m", "parent_id": None, "message_tree_id": "m", "text": ASK, "role": "prompter", "deleted": False},
            {"message_id": "n", "parent_id": "m", "text": BAD, "role": "assistant", "rank": 1, "review_result": True},
            {"message_id": "o", "parent_id": "m", "text": GOOD, "role": "assistant", "rank": 0, "lang": "en"},
            {"message_id": "p", "parent_id": "m", "text": "Buy eggs!", "role": "assistant", "rank": 2, "deleted": True},
        ),
        ((GOOD, BAD),),
        GOOD,
    ),
)
DEMONSTRATIONS = (
    demonstration_of("Prompt and completion", "prompt_and_completion", {"prompt": ASK, "completion": GOOD}),
    demonstration_of("Chat messages (OpenAI, TRL, UltraChat)", "messages", {"messages": [user(), said(GOOD)]}),
    demonstration_of(
        "ShareGPT", "messages", {"conversations": [{"from": "system", "value": SYSTEM}, human(), gpt(GOOD)]}, WITH_SYSTEM
    ),
    demonstration_of("Alpaca", "alpaca", {"instruction": ASK, "input": "", "output": GOOD, "text": "Below is ..."}),
    demonstration_of("Problem and solution (NuminaMath)", "problem_and_solution", {"problem": ASK, "solution": GOOD}),
    demonstration_of("Question and answer (GSM8K)", "question_and_answer", {"question": ASK, "answer": GOOD}),
    demonstration_of("Query and response (MetaMath)", "question_and_answer", {"query": ASK, "response": GOOD}),
)
PROMPTS = (
    prompt_of("Prompt", "prompt", {"prompt": ASK}),
    prompt_of("Prompt as conversation (verl)", "prompt", {"prompt": [user()], "reward_model": {"ground_truth": "7"}}),
    prompt_of("Instruction", "prompt", {"instruction": ASK}),
    prompt_of("Problem", "prompt", {"problem": ASK}),
    prompt_of("Query", "prompt", {"query": ASK}),
    prompt_of("Input", "prompt", {"input": ASK}),
    prompt_of("Text", "prompt", {"text": ASK}),
    prompt_of("MT-Bench", "prompt", {"question_id": 81, "turns": [ASK, "And two eggs?"]}),
    prompt_of("Messages without an answer", "messages", {"messages": [user()]}),
)
EXAMPLES = PAIRS + DEMONSTRATIONS + PROMPTS

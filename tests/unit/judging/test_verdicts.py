"""What a judge is asked, how it is read, what it costs, and what its verdicts add up to."""

from __future__ import annotations

from pathlib import Path

import pytest

from dvpo_ray.errors import ConfigError, DataError
from dvpo_ray.judging.cost import Prices, agree, estimate, token_counter
from dvpo_ray.judging.formats import Answered
from dvpo_ray.judging.verdicts import Comparison, Verdict, outcome, pair_up, parse_verdict, summarise

POEM = Comparison("81", ("Write a poem.", "Shorter."), ("Roses", "Rose"), ("Violets", "Violet"))
JUDGE = {"model": "j", "temperature": 0.0}


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Both are fine.\n[[C]]", "C"),
        ("[[A]] is my verdict, so [[A]]", "A"),
        ("**[[B]]**", "B"),
        ("", None),
        ("A is better", None),
        ("[A]", None),
        ("[[a]]", None),
        ("[[A]] or [[B]]", None),
        ("[[D]]", None),
        ("[[A]] [[Z]]", None),
        ("[[AB]]", None),
    ],
)
def test_only_one_clear_mark_is_a_verdict(reply: str, verdict: Verdict | None) -> None:
    assert parse_verdict(reply) == verdict


def test_the_judge_sees_both_orders_and_all_turns() -> None:
    first, second = POEM.orders()
    shown = first.messages()[1]["content"]
    assert shown.index("Roses") < shown.index("Violets") < shown.index("Shorter.") < shown.index("Rose\n</Answer A 2>")
    assert "<Answer A 1>\nViolets\n" in second.messages()[1]["content"]


def test_a_verdict_is_known_by_all_it_depends_on() -> None:
    first, second = POEM.orders()
    known = {
        first.identity(JUDGE),
        second.identity(JUDGE),
        first.identity(JUDGE | {"model": "k"}),
        first.identity(JUDGE | {"temperature": 1.0}),
        Comparison("81", ("Write a verse.", "Shorter."), POEM.a, POEM.b).orders()[0].identity(JUDGE),
    }
    assert len(known) == 5
    swapped = Comparison("other id", POEM.asked, POEM.b, POEM.a)
    assert swapped.orders()[1].identity(JUDGE) == first.identity(JUDGE), "the same texts in the same order are the same request"


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        (("A", "B"), "win"),
        (("B", "A"), "loss"),
        (("C", "C"), "tie"),
        (("A", "A"), "inconsistent"),
        (("A", "C"), "inconsistent"),
        (("C", "A"), "inconsistent"),
        ((None, "B"), "undecided"),
        (("A", None), "undecided"),
    ],
)
def test_a_win_needs_both_orders(pair: tuple[Verdict | None, Verdict | None], expected: str) -> None:
    assert outcome(*pair) == expected


def test_what_verdicts_add_up_to() -> None:
    """3 wins, 1 loss, 1 tie, 2 that change with the order, 1 unread, 1 identical pair.

    Win rate: (3 + 0.5 (1 + 2 + 1)) / 8 = 0.625. Consistent: 5 of 7. Marks of the 15 replies that were read: A for the win, loss
    and AA pairs 3 + 1 + 2, the unread pair's A, AC's A: 8; C: 2 of the tie, 1 of AC; so (8 + 1.5) / 15.
    """
    pairs: list[tuple[Verdict | None, Verdict | None]] = [("A", "B")] * 3 + [("B", "A"), ("C", "C"), ("A", "A"), ("A", "C")]
    found = summarise([*pairs, ("A", None)], identical=1)
    assert {key: found[key] for key in ("questions", "wins", "losses", "ties", "identical", "inconsistent", "undecided")} == {
        "questions": 9,
        "wins": 3,
        "losses": 1,
        "ties": 2,
        "identical": 1,
        "inconsistent": 2,
        "undecided": 1,
    }
    assert found["win_rate_a"] == pytest.approx(0.625)
    assert found["swap_consistency"] == pytest.approx(5 / 7)
    assert found["shown_first_preferred"] == pytest.approx(9.5 / 15)
    low, high = found["win_rate_a_ci95"]
    assert 0.3 < low < 0.625 < high < 0.95


def test_nothing_read_gives_no_rates() -> None:
    found = summarise([(None, None), (None, "A")])
    assert found["undecided"] == 2
    assert [found[key] for key in ("win_rate_a", "win_rate_a_ci95", "swap_consistency")] == [None, None, None]
    assert found["shown_first_preferred"] == 1.0


def test_answers_are_matched_by_question() -> None:
    a, b = Answered("1", ("x",), ("y",)), Answered("1", None, ("z",))
    assert pair_up([a], [b], {}) == [Comparison("1", ("x",), ("y",), ("z",))]
    assert pair_up([b], [b], {"1": ("w",)})[0].asked == ("w",)
    assert pair_up([b], [a], {"1": ("x",)})[0].asked == ("x",)
    for left, right, message in (
        ([a], [b, Answered("2", None, ("z",))], "1 questions are answered in one of the two files alone, for example '2'"),
        ([b], [b], "question '1' stands in neither file: .* --questions"),
        ([a], [Answered("1", None, ("z", "z"))], "question '1': 2 answers to 1 turns"),
    ):
        with pytest.raises(DataError, match=message):
            pair_up(left, right, {})
    other = Answered("1", ("x?",), ("z",))
    for right, asked, both in (
        (other, {}, "'x' and 'x\\?'"),
        (b, {"1": ("w",)}, "'w' and 'x'"),
        (other, {"1": ("x",)}, "'x' and 'x\\?'"),
    ):
        with pytest.raises(DataError, match=f"question '1' is not the same everywhere: {both}; have both models"):
            pair_up([a], [right], asked)


def test_cost_is_estimated_before_anything_is_asked() -> None:
    """Two requests of 100 and 300 counted tokens, 2 messages of 8 more each; replies of at most 1,000."""
    counts = iter([40, 60, 40, 260])
    found = estimate(POEM.orders(), 1000, Prices(2.0, 10.0), lambda text: next(counts), "by hand")
    assert (found.requests, found.input_tokens, found.output_tokens_at_most) == (2, 432, 2000)
    assert found.cost_at_most == pytest.approx((432 * 2 + 2000 * 10) / 1e6)
    agree(found, max_cost=0.03, yes=False)
    for max_cost, yes in ((0.02, False), (0.02, True), (None, False)):
        with pytest.raises(ConfigError, match="nothing was asked.*2 requests, about 432 tokens sent"):
            agree(found, max_cost, yes)
    without = estimate(POEM.orders(), 1000, Prices(), len, "by hand")
    agree(without, None, yes=True)
    with pytest.raises(ConfigError, match="--max-cost needs prices"):
        agree(without, 1.0, yes=True)
    agree(estimate([], 1000, Prices(), len, ""), None, yes=False)


def test_tokens_are_counted_by_a_tokenizer_or_by_characters(tiny_model: Path, tmp_path: Path) -> None:
    count, how = token_counter(None)
    assert [count(text) for text in ("", "abcd", "abcde")] == [0, 1, 2] and "4 characters" in how
    count, how = token_counter(tiny_model)
    assert count("abcde") == 5, "the tiny tokenizer's tokens are bytes"
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        token_counter(tmp_path)


def test_a_model_that_wins_every_time_has_an_interval_all_the_same() -> None:
    """20 of 20 by Wilson: 1 / (1 + 1.959964^2 / 20) = 0.838875 to 1."""
    low, high = summarise([("A", "B")] * 20)["win_rate_a_ci95"]
    assert (low, high) == pytest.approx((0.838875, 1.0), abs=1e-6)

"""What a judge will cost, before it is asked, and what it has cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dvpo_ray.errors import ConfigError
from dvpo_ray.judging.verdicts import Request

CHARACTERS_PER_TOKEN = 4
# Roles and separators of a chat template, for each message.
TEMPLATE_TOKENS = 8
Count = Callable[[str], int]


@dataclass(frozen=True)
class Prices:
    """In any currency, for a million tokens."""

    input: float = 0.0
    output: float = 0.0

    @property
    def given(self) -> bool:
        """Whether there are any."""
        return bool(self.input or self.output)

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """Of so many tokens."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6


@dataclass(frozen=True)
class Estimate:
    """Of requests not asked yet: tokens sent, the most that can come back, and the most that it can cost (None without prices).

    ``counted`` says how tokens were counted.
    """

    requests: int
    input_tokens: int
    output_tokens_at_most: int
    cost_at_most: float | None
    counted: str

    def __str__(self) -> str:
        price = "no prices given" if self.cost_at_most is None else f"at most {self.cost_at_most:.2f} at the prices given"
        return (
            f"{self.requests} requests, about {self.input_tokens:,} tokens sent ({self.counted}), at most "
            f"{self.output_tokens_at_most:,} tokens back, {price}"
        )


def token_counter(tokenizer: Path | None) -> tuple[Count, str]:
    """What counts tokens, and its name: a model folder's tokenizer, else four characters to a token."""
    if tokenizer is None:
        return lambda text: -(-len(text) // CHARACTERS_PER_TOKEN), f"{CHARACTERS_PER_TOKEN} characters to a token"
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--tokenizer '{tokenizer}' holds no tokenizer: {error}; give a model's folder") from error
    return lambda text: len(loaded(text, add_special_tokens=False)["input_ids"]), f"by the tokenizer of {tokenizer}"


def sent_tokens(request: Request, count: Count) -> int:
    """Of one request, about."""
    return sum(count(message["content"]) + TEMPLATE_TOKENS for message in request.messages())


def estimate(requests: Sequence[Request], max_tokens: int, prices: Prices, count: Count, counted: str) -> Estimate:
    """Of requests whose replies have at most ``max_tokens`` tokens."""
    sent = sum(sent_tokens(request, count) for request in requests)
    back = len(requests) * max_tokens
    return Estimate(len(requests), sent, back, prices.cost(sent, back) if prices.given else None, counted)


def agree(found: Estimate, max_cost: float | None, yes: bool, spent: float = 0.0) -> None:
    """Go on only with somebody's consent: ``--yes``, or a limit that the estimate keeps together with what is ``spent``.

    Raises:
        ConfigError: there is none; says what it would cost.
    """
    if not found.requests:
        return
    if max_cost is not None and found.cost_at_most is None:
        raise ConfigError("--max-cost needs prices: give --input-price and --output-price, for a million tokens")
    if max_cost is not None and found.cost_at_most is not None and spent + found.cost_at_most > max_cost:
        before = f", after {spent:.2f} for verdicts that are known" if spent else ""
        raise ConfigError(
            f"nothing was asked: {found}{before}, more than --max-cost {max_cost:g}; raise it, or judge fewer questions"
        )
    if max_cost is None and not yes:
        raise ConfigError(f"nothing was asked yet: {found}; go on with --yes, or with prices and --max-cost")

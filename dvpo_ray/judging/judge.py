"""A judge compares the answers of two models, each pair in both orders; what it said once is not asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dvpo_ray.errors import JudgeError, RequestRefusedError
from dvpo_ray.judging.cost import Count, Prices, agree, estimate, sent_tokens, token_counter
from dvpo_ray.judging.endpoint import Endpoint, JudgeSettings, Reply
from dvpo_ray.judging.files import read_answers, read_questions
from dvpo_ray.judging.formats import format_named
from dvpo_ray.judging.verdict_file import Judgement, VerdictFile
from dvpo_ray.judging.verdicts import Comparison, Request, Verdict, pair_up, parse_verdict, summarise
from dvpo_ray.runs.folder import locked
from dvpo_ray.runs.run import Event, Listener

# Of all requests, between two lines of progress.
SHOWN_SHARE = 0.05


@dataclass(frozen=True)
class Consent:
    """What the judge may cost: ``yes`` to whatever it takes, or ``max_cost`` at ``prices``. The estimate's tokens are those of
    ``tokenizer``, where there is one."""

    yes: bool = False
    max_cost: float | None = None
    prices: Prices = field(default_factory=Prices)
    tokenizer: Path | None = None


def compare_answers(
    a: Path,
    b: Path,
    kind: str,
    questions: Path | None,
    settings: JudgeSettings,
    verdicts: Path,
    consent: Consent,
    listener: Listener = lambda event: None,
) -> dict[str, Any]:
    """Judge two files of answers of format ``kind``; returns the closing figures.

    The file ``verdicts`` keeps what the judge said, and is gone on with when it is there.

    Raises:
        ConfigError: nobody agreed to the cost.
        JudgeError: the service refuses or keeps failing, or the cost passed ``max_cost``.
    """
    form = format_named(kind)
    asked = {} if questions is None else {one.key: one.asked for one in read_questions(questions, form)}
    comparisons = pair_up(read_answers(a, form), read_answers(b, form), asked)
    with locked(verdicts):
        file = VerdictFile(verdicts)
        wanted = _wanted(comparisons, settings)
        missing = {
            key: request
            for key, request in wanted.items()
            if key not in file.known or not file.known[key].settled(settings.max_tokens)
        }
        count, counted = token_counter(consent.tokenizer)
        expected = estimate(list(missing.values()), settings.max_tokens, consent.prices, count, counted)
        judging = _Judging(file, settings, consent, count, [file.known[key] for key in wanted if key in file.known], listener)
        agree(expected, consent.max_cost, consent.yes, judging.spent)
        listener(Event("phase", f"{len(wanted) - len(missing)} verdicts are known; asking {settings.model}: {expected}"))
        with file:
            asyncio.run(judging.ask_all(missing))
        facts = _facts(comparisons, file.known, settings)
    return facts | {
        "judge": settings.model,
        "known_before": len(wanted) - len(missing),
        "asked": len(missing),
        "retries": judging.retries,
        "refused": len(judging.refusals),
        "refusal": judging.refusals[0] if judging.refusals else None,
        "input_tokens": judging.input_tokens,
        "output_tokens": judging.output_tokens,
        "cost": judging.cost if consent.prices.given else None,
        "estimated_input_tokens": expected.input_tokens,
        "estimated_cost_at_most": expected.cost_at_most,
        "verdicts": str(verdicts.resolve()),
    }


class _Judging:
    """The requests of one evaluation, a bounded number at a time."""

    def __init__(
        self,
        file: VerdictFile,
        settings: JudgeSettings,
        consent: Consent,
        count: Count,
        known: Sequence[Judgement],
        listener: Listener,
    ) -> None:
        """``known`` are the verdicts that were paid for; ``count`` counts tokens where the service does not."""
        self._file = file
        self._settings = settings
        self._consent = consent
        self._count = count
        self._listener = listener
        self._done = 0
        self._any_known = bool(known)
        self._left = 0
        self.spent = consent.prices.cost(sum(one.input_tokens for one in known), sum(one.output_tokens for one in known))
        self.retries = 0
        self.refusals: list[str] = []
        self.input_tokens = 0
        self.output_tokens = 0

    @property
    def cost(self) -> float:
        """Of what was asked now, as the service counts tokens, or as they are estimated where it does not."""
        return self._consent.prices.cost(self.input_tokens, self.output_tokens)

    @property
    def _over_limit(self) -> bool:
        limit = self._consent.max_cost
        return limit is not None and self.spent + self.cost > limit

    async def ask_all(self, missing: Mapping[str, Request]) -> None:
        """Ask for all; the first failure ends the rest. Over the limit no more are asked, and those under way are kept.

        Raises:
            JudgeError: the service refuses or keeps failing, refused every request ever made, or the cost passed the limit.
        """
        places = asyncio.Semaphore(self._settings.concurrency)
        try:
            async with Endpoint(self._settings) as endpoint, asyncio.TaskGroup() as tasks:
                for key, request in missing.items():
                    tasks.create_task(self._ask(key, request, len(missing), endpoint, places))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        self.retries = endpoint.retries
        if self._left:
            raise JudgeError(
                f"the judge has cost {self.spent + self.cost:.2f}, more than --max-cost {self._consent.max_cost:g}, and more "
                f"than estimated; {self._left} requests were not made, verdicts so far are kept: raise the limit to go on"
            )
        if missing and len(self.refusals) == len(missing) and not self._any_known:
            raise JudgeError(f"all {len(missing)} requests were refused, the first so: {self.refusals[0]}")

    async def _ask(self, key: str, request: Request, total: int, endpoint: Endpoint, places: asyncio.Semaphore) -> None:
        async with places:
            if self._over_limit:
                self._left += 1
                return
            try:
                reply = await endpoint.ask(request.messages())
            except RequestRefusedError as error:
                self.refusals.append(f"question '{request.question[:80]}': {error}")
            else:
                self._keep(key, request, reply)
        self._done += 1
        if self._done == total or self._done % max(1, int(total * SHOWN_SHARE)) == 0:
            self._listener(Event("step", "", self._done, total))

    def _keep(self, key: str, request: Request, reply: Reply) -> None:
        judgement = Judgement(
            key=key,
            question=request.question,
            verdict=parse_verdict(reply.text),
            reply=reply.text,
            finish_reason=reply.finish_reason,
            input_tokens=reply.input_tokens or sent_tokens(request, self._count),
            output_tokens=reply.output_tokens or self._count(reply.text),
            max_tokens=self._settings.max_tokens,
        )
        self._file.add(judgement)
        self.input_tokens += judgement.input_tokens
        self.output_tokens += judgement.output_tokens


def _wanted(comparisons: Sequence[Comparison], settings: JudgeSettings) -> dict[str, Request]:
    """Everything the judge must have been asked, by its key."""
    requests = [request for one in comparisons if not one.identical for request in one.orders()]
    return {request.identity(settings.identity): request for request in requests}


def _facts(comparisons: Sequence[Comparison], known: Mapping[str, Judgement], settings: JudgeSettings) -> dict[str, Any]:
    """The figures of all verdicts, old and new; a request that was refused has none."""
    judged = [one for one in comparisons if not one.identical]
    found = [[known.get(request.identity(settings.identity)) for request in one.orders()] for one in judged]
    replies = [judgement for pair in found for judgement in pair if judgement is not None]
    unread = [judgement for judgement in replies if judgement.verdict is None]

    def verdict(judgement: Judgement | None) -> Verdict | None:
        return None if judgement is None else judgement.verdict

    facts = summarise([(verdict(first), verdict(second)) for first, second in found], len(comparisons) - len(judged))
    return facts | {
        "parse_failures": len(unread),
        "parse_failures_cut": sum(judgement.finish_reason == "length" for judgement in unread),
    }

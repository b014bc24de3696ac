"""A real vLLM engine and a real learner on the same weights: log-probs, versions, sync, damage, prefix cache."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray as ray_module
import torch
from safetensors.torch import load_file

from actors.learner.policy_gang import PolicyLearner
from actors.rollout.pool import RolloutPool
from actors.scorer.pool import ScorerPool
from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.config.sections import (
    ClusterSection,
    TransferSection,
)
from dvpo_ray.data import EncodedPrompt
from dvpo_ray.errors import ActorFailedError, DamagedWeightsError, PermanentFailureError, ServedModelError, WeightSyncError
from dvpo_ray.learning.batching import pad_sequences
from dvpo_ray.models.token_reader import PolicyReader, load_policy
from dvpo_ray.types import Ragged, RolloutRequest, RowId, ScoredBatch, Trajectory
from jobs.probe import Probe
from tests.support.decided import scorer_section
from tests.support.engines import (
    ANSWER_LENGTHS,
    MODEL,
    Sent,
    answers_of,
    gap,
    log_probs_of,
    requests,
    settings,
    weights_in,
    weights_of,
)
from tests.support.fakes import scored_batch
from tests.support.layer_engines import BACKENDS

pytestmark = pytest.mark.integration


def test_a_row_that_misses_its_deadline_is_named(ray: ClusterSection, tiny_model: Path) -> None:
    pool = RolloutPool(str(tiny_model), MODEL, settings(row_timeout_s=1e-4).rollout, ray, seed=0)
    pool.wait_ready()
    try:
        with pytest.raises(ActorFailedError, match="row 0/0:r0/0: no complete answer within 0.0001 s"):
            answers_of(pool, requests(1))
    finally:
        pool.stop()


def test_engine_and_learner_agree_in_float32(rollouts: RolloutPool, tiny_model: Path) -> None:
    answers = answers_of(rollouts, requests(12))
    assert max(a.response_ids.size for a in answers) > 5
    assert gap(answers, log_probs_of(weights_of(tiny_model, 1.0), tiny_model, answers)) <= 1e-3


def test_a_row_that_an_engine_refuses_is_named_with_the_key_and_others_are_answered(rollouts: RolloutPool) -> None:
    (long,) = requests(1, prompt_tokens=300)
    with pytest.raises(PermanentFailureError) as raised:
        answers_of(rollouts, [long])
    told = str(raised.value)
    assert told.startswith(
        "row 0/0:r0/0: rollout-0 refuses it: VLLMValidationError: This model's maximum context length is 256 tokens"
    )
    assert "300 input tokens" in told
    assert "to mend it: lower data.max_prompt_tokens, or raise rollout.engine.max_model_len" in told
    with pytest.raises(
        PermanentFailureError, match="(?s)row 0/0:odd/0: rollout-0 refuses it: .*Token id 99999 is out of vocabulary.*vocab"
    ):
        answers_of(rollouts, [RolloutRequest(RowId(0, 0, "odd", 0), (5, 99999), seed=1)])
    assert len(answers_of(rollouts, requests(2, seed=3))) == 2


def test_rows_are_reproducible_by_seed(rollouts: RolloutPool) -> None:
    first, again = answers_of(rollouts, requests(6)), answers_of(rollouts, requests(6)[::-1])
    for a, b in zip(first, again[::-1], strict=True):
        assert a.response_ids.tolist() == b.response_ids.tolist()


def test_many_prompts_at_once_do_not_split_a_prefill(rollouts: RolloutPool) -> None:
    """More prompt tokens than one engine step takes: a split prefill with seeds would kill a CPU engine."""
    answers = answers_of(rollouts, requests(40, prompt_tokens=180))
    assert len(answers) == 40


SMALL = 40_000


def test_sync_a_b_a_versions_checksums_and_no_stale_prefix_cache(rollouts: RolloutPool, tiny_model: Path) -> None:
    """Prompts longer than a cache block (128 tokens): stale keys and values would show in the log-probs. Small buckets cut
    layers apart."""
    a, b = weights_of(tiny_model, 1.0), weights_of(tiny_model, 1.3)
    asked = requests(6, prompt_tokens=180, seed=3)
    checksums = []
    embedding = "model.embed_tokens.weight"
    tied = a | {embedding: a[embedding] * 1.3}
    assert Sent(0, a, SMALL).count > 10
    for sent in (Sent(1, a), Sent(2, b, SMALL), Sent(3, a), Sent(4, tied, SMALL)):
        checksums.append(rollouts.sync(sent).checksum)
        answers = answers_of(rollouts, [replace(r, row=replace(r.row, step=sent.version)) for r in asked])
        assert {int(v) for answer in answers for v in answer.versions} == {sent.version}
        weights = {1: a, 2: b, 3: a, 4: tied}[sent.version]
        assert gap(answers, log_probs_of(weights, tiny_model, answers)) <= 1e-3
    assert checksums[0] == checksums[2] != checksums[1]


class Reading:
    """A learner that holds these weights."""

    def __init__(self, weights: dict[str, torch.Tensor], folder: Path) -> None:
        self._weights, self._folder = weights, folder

    def log_probs(self, prompts: list[np.ndarray], responses: list[np.ndarray], temperature: float) -> list[np.ndarray]:
        assert temperature == 1.0
        rows = zip(prompts, responses, strict=True)
        answers = [Trajectory(RowId(0, 0, "", 0), *row, np.zeros(row[1].size), np.zeros(row[1].size), "length") for row in rows]
        return log_probs_of(self._weights, self._folder, answers)


def test_a_probe_sees_whether_engines_serve_what_is_trained(rollouts: RolloutPool, ray: ClusterSection, tiny_model: Path) -> None:
    """Whatever filters the recipe's answers are sampled with: those of the probe are not."""
    a, b = weights_of(tiny_model, 1.0), weights_of(tiny_model, 1.01)
    rollouts.sync(Sent(50, a))
    prompts = [EncodedPrompt(f"p{i}", "", request.prompt_ids, f"p{i}") for i, request in enumerate(requests(12))]
    said: list[str] = []

    def probe(weights: dict[str, torch.Tensor], most: float = 1e-3) -> Probe:
        learner: Any = Reading(weights, tiny_model)
        return Probe(prompts, rollouts, learner, settings(max_probe_gap=most).rollout, ray, said.append)

    right = probe(a)
    right.at_start()
    right.after_update(1)
    right.after_update(2)
    assert list(right.gaps) == ["at the start", "after the first weight update"] and max(right.gaps.values()) < 1e-4
    assert len(said) == 2 and "at most 0.001" in said[0]
    with pytest.raises(ServedModelError, match=r"(?s)at the start, .* 128 tokens are .* nats.*rollout\.max_probe_gap \(0\.001\)"):
        probe(b).at_start()
    # Beside rounding to bfloat16 the same difference is small.
    probe(b, 0.15).at_start()


def test_every_weight_shows_in_the_checksum(rollouts: RolloutPool, tiny_model: Path) -> None:
    """Also those that a CPU engine keeps packed only."""
    a = weights_of(tiny_model, 1.0)
    checksums = {"": rollouts.sync(Sent(5, a)).checksum}
    for version, kind in enumerate(("q_proj", "o_proj", "up_proj", "down_proj", "embed_tokens", "norm"), start=6):
        name = [name for name in a if kind in name][-1]
        checksums[name] = rollouts.sync(Sent(version, a | {name: a[name] * 1.1})).checksum
    assert len(set(checksums.values())) == len(checksums)
    assert rollouts.sync(Sent(9, a)).checksum == checksums[""]


def test_damaged_weights_are_refused_and_the_old_ones_keep_serving(rollouts: RolloutPool, tiny_model: Path) -> None:
    a, b = weights_of(tiny_model, 1.0), weights_of(tiny_model, 1.3)
    rollouts.sync(Sent(10, a))
    with pytest.raises(DamagedWeightsError, match="bucket 1 of 1 of weights 11 is damaged.*it was refused"):
        rollouts.sync(Sent(11, b, damaged={0: 99}))
    answers = answers_of(rollouts, requests(4, seed=5))
    assert {int(v) for answer in answers for v in answer.versions} == {10}
    assert gap(answers, log_probs_of(a, tiny_model, answers)) <= 1e-3


def test_a_damaged_bucket_is_sent_again_and_fences_the_engine_when_it_stays_so(rollouts: RolloutPool, tiny_model: Path) -> None:
    a, b = weights_of(tiny_model, 1.0), weights_of(tiny_model, 1.3)
    rollouts.sync(Sent(12, b, SMALL, damaged={0: 1, 3: 2}))
    answers = answers_of(rollouts, requests(4, seed=5))
    assert gap(answers, log_probs_of(b, tiny_model, answers)) <= 1e-3
    with pytest.raises(DamagedWeightsError, match="bucket 4 of"):
        rollouts.sync(Sent(13, a, SMALL, damaged={3: 99}))
    with pytest.raises(WeightSyncError, match="fenced: an update to version 13 did not complete"):
        answers_of(rollouts, requests(1, seed=6))
    rollouts.sync(Sent(14, a))
    answers = answers_of(rollouts, requests(4, seed=7))
    assert gap(answers, log_probs_of(a, tiny_model, answers)) <= 1e-3


def test_an_update_cut_half_way_fences_the_engine_until_a_full_one(rollouts: RolloutPool, tiny_model: Path) -> None:
    """A payload that is whole by its digest but holds a tensor of the wrong shape fails inside the engine."""
    a = weights_of(tiny_model, 1.0)
    name = "model.layers.0.mlp.down_proj.weight"
    wrong = a | {name: a[name][:5].contiguous()}
    with pytest.raises(ActorFailedError, match=r"rollout-0 failed while loading bucket \d+ of weights 20: .+"):
        rollouts.sync(Sent(20, wrong))
    with pytest.raises(WeightSyncError, match="fenced: an update to version 20 did not complete"):
        answers_of(rollouts, requests(1, seed=6))
    rollouts.sync(Sent(21, a))
    answers = answers_of(rollouts, requests(4, seed=7))
    assert gap(answers, log_probs_of(a, tiny_model, answers)) <= 1e-3


def test_answers_under_way_go_on_with_the_new_weights(rollouts: RolloutPool, tiny_model: Path) -> None:
    """Every token's version is right: its log-prob is the one of the weights it names, given all tokens before it."""
    weights = {30: weights_of(tiny_model, 1.0), 31: weights_of(tiny_model, 1.3)}
    rollouts.sync(Sent(30, weights[30]))
    asked = requests(320, seed=8)
    stream = rollouts.generate(asked)
    handles = [next(stream)]
    rollouts.sync(Sent(31, weights[31]))
    handles += list(stream)
    answers = ray_module.get(handles, timeout=120)
    rollouts.sync(Sent(32, weights[30]))
    assert sorted(answer.row for answer in answers) == sorted(request.row for request in asked)
    spanning = [answer for answer in answers if set(answer.versions.tolist()) == {30, 31}]
    assert spanning, "no answer was under way during the update"
    for version, tensors in weights.items():
        expected = log_probs_of(tensors, tiny_model, spanning)
        for answer, log_probs in zip(spanning, expected, strict=True):
            sampled = answer.versions == version
            assert np.abs(answer.log_probs - log_probs)[sampled].max() <= 1e-3


@pytest.mark.parametrize("backend", ["shared_memory", "object_store", "broadcast"])
def test_a_learner_sends_its_weights_to_the_engine(
    rollouts: RolloutPool, ray: ClusterSection, tiny_model: Path, backend: str
) -> None:
    config = settings().model_copy(update={"transfer": TransferSection(backend=backend, bucket_mib=1)})
    gang = PolicyLearner(str(tiny_model), MODEL, config, ray, seed=0)
    gang.wait_ready()
    try:
        gang.connect(rollouts)
        for version in (40, 41):
            checksum = rollouts.sync(gang.weights(version)).checksum
        gang.step(0, 0.1, [ray_module.put(scored_batch(ANSWER_LENGTHS, seed=1))])
        assert rollouts.sync(gang.weights(42)).checksum != checksum
        answers = answers_of(rollouts, requests(4, seed=40))
        assert gap(answers, log_probs_of(weights_in(gang), tiny_model, answers)) <= 1e-3
    finally:
        gang.stop()
    rollouts.sync(Sent(43, weights_of(tiny_model, 1.0)))


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the first gang of the test below did: its checkpoint after one step, and its weights after two."""
    return {"checkpoint": tmp_path_factory.mktemp("checkpoint")}


@pytest.mark.parametrize(
    ("backend", "ranks"), [("zero-0", 1), ("zero-0", 2), ("zero-1", 2), ("zero-2", 2), ("zero-3", 2), ("fsdp", 2)]
)
def test_learner_ranks_and_backends_take_the_same_step_and_go_on_from_the_same_checkpoint(
    ray: ClusterSection, tiny_model: Path, tmp_path: Path, two_steps: dict[str, Any], backend: str, ranks: int
) -> None:
    """One step on the same rows gives the same weights, loss and gradient norm however it is sharded. Its checkpoint holds the
    same numbers, and the second step of a gang that loaded another's checkpoint is that of the gang that made it."""
    config = settings()
    learner = config.learner.model_copy(update={"ranks": ranks, "backend": BACKENDS[backend], "token_budget": 256})
    config = config.model_copy(update={"learner": learner})
    gang = PolicyLearner(str(tiny_model), MODEL, config, ray, seed=0)
    gang.wait_ready()
    try:
        scored = scored_batch(ANSWER_LENGTHS, seed=1)
        result = gang.step(0, 0.1, [ray_module.put(scored)])
        expected = reference_step(tiny_model, config, scored)
        assert result.metrics["optimizer/grad_norm"] == pytest.approx(expected[1], rel=1e-3)
        assert_same_weights(gang, expected[0])
        first = "weights" not in two_steps
        folder = two_steps["checkpoint"] if first else tmp_path
        gang.begin_checkpoint(str(folder))
        assert set(gang.end_checkpoint()) == {file.name for file in folder.iterdir()}
        assert len(list(folder.iterdir())) == ranks
        second = replace(scored_batch(ANSWER_LENGTHS, seed=2), versions=Ragged.of([np.ones(n) for n in ANSWER_LENGTHS], np.int32))
        if not first:
            one, other = checkpointed(two_steps["checkpoint"]), checkpointed(folder)
            assert set(one) == set(other)
            assert all(torch.allclose(one[name], other[name], rtol=0, atol=1e-4) for name in one)
            gang.load_checkpoint(str(two_steps["checkpoint"]))
        gang.step(1, 0.1, [ray_module.put(second)])
        if first:
            two_steps["weights"] = weights_in(gang)
        assert_same_weights(gang, two_steps["weights"])
    finally:
        gang.stop()


def checkpointed(folder: Path) -> dict[str, torch.Tensor]:
    """The learner's weights and moments in a checkpoint, put together from all ranks' pieces."""
    pieces: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for file in folder.iterdir():
        for name, tensor in load_file(file).items():
            if "|" in name:
                key, parameter, start = name.split("|")
                pieces.setdefault(f"{key} {parameter}", []).append((int(start), tensor.flatten()))
    return {name: torch.cat([tensor for _, tensor in sorted(parts, key=lambda p: p[0])]) for name, parts in pieces.items()}


def test_mixed_precision_goes_on_from_a_checkpoint_bit_for_bit(ray: ClusterSection, tiny_model: Path, tmp_path: Path) -> None:
    """bfloat16 weights with float32 masters: the masters are what is kept."""
    config = settings()
    config = config.model_copy(update={"learner": config.learner.model_copy(update={"dtype": "bfloat16"})})
    gang = PolicyLearner(str(tiny_model), MODEL, config, ray, seed=0)
    gang.wait_ready()
    try:
        batch = [ray_module.put(scored_batch(ANSWER_LENGTHS, seed=1))]
        gang.step(0, 0.1, batch)
        gang.begin_checkpoint(str(tmp_path))
        gang.end_checkpoint()
        found = []
        for _ in range(2):
            gang.load_checkpoint(str(tmp_path))
            gang.step(0, 0.1, batch)
            found.append(weights_in(gang))
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
        assert {tensor.dtype for name, tensor in checkpointed(tmp_path).items()} == {torch.float32}
    finally:
        gang.stop()


@pytest.mark.parametrize("backend", ["zero-2", "zero-3", "fsdp"])
def test_sharded_ranks_agree_when_only_one_has_rows_with_a_common_beginning(
    ray: ClusterSection, tiny_model: Path, backend: str
) -> None:
    """One rank gets two rows that begin alike, the other a single row: both must make the same passes."""
    config = settings()
    learner = config.learner.model_copy(update={"ranks": 2, "backend": BACKENDS[backend], "token_budget": 256})
    config = config.model_copy(update={"learner": learner})
    scored = scored_batch([20, 6, 7], seed=2)
    begun = [np.concatenate([np.arange(2, 14, dtype=np.int32), row]) for row in scored.prompt_ids.rows()]
    scored = replace(scored, prompt_ids=Ragged.of(begun, np.int32))
    gang = PolicyLearner(str(tiny_model), MODEL, config, ray, seed=0)
    gang.wait_ready()
    try:
        result = gang.step(0, 0.1, [ray_module.put(scored)])
        weights, norm = reference_step(tiny_model, config, scored)
        assert result.metrics["optimizer/grad_norm"] == pytest.approx(norm, rel=1e-3)
        assert_same_weights(gang, weights)
    finally:
        gang.stop()


@pytest.mark.parametrize(("backend", "ranks"), [("zero-0", 1), ("zero-1", 2), ("zero-3", 2), ("fsdp", 2)])
def test_rows_that_stream_in_take_the_same_step(ray: ClusterSection, tiny_model: Path, backend: str, ranks: int) -> None:
    """Gradients added up while batches come, in any order, give the weights of all rows at once."""
    config = settings()
    learner = config.learner.model_copy(
        update={"ranks": ranks, "backend": BACKENDS[backend], "token_budget": 24 if ranks == 1 else 18}
    )
    ppo = config.ppo.model_copy(update={"loss_normaliser": "limit"})
    advantage = config.advantage.model_copy(update={"whitening": "none"})
    config = config.model_copy(update={"learner": learner, "ppo": ppo, "advantage": advantage, "streaming": True})
    gang = PolicyLearner(str(tiny_model), MODEL, config, ray, seed=0)
    gang.wait_ready()
    try:
        scored = scored_batch(ANSWER_LENGTHS, seed=1)
        # 12, 18, 7 and 30 tokens: the first three fill a micro-batch of every rank when the last comes.
        result = gang.step(0, 0.1, (ray_module.put(scored.take(rows)) for rows in ([4], [2, 0], [5], [1, 3])))
        expected = reference_step(tiny_model, config, scored)
        assert sorted(result.trained) == sorted(scored.rows)
        assert result.metrics["optimizer/grad_norm"] == pytest.approx(expected[1], rel=1e-3)
        assert_same_weights(gang, expected[0])
    finally:
        gang.stop()


def assert_same_weights(gang: PolicyLearner, expected: dict[str, torch.Tensor]) -> None:
    """Equal up to a tenth of the learning rate: Adam's first step is about the rate whatever the gradient, so an element whose
    gradient is next to nothing may differ a little, and one with a wrong gradient differs by the rate or twice of it."""
    found = weights_in(gang)
    assert set(found) == set(expected)
    for name, tensor in found.items():
        assert torch.allclose(tensor, expected[name], rtol=0, atol=1e-4), name


def reference_step(folder: Path, config: PolicyTraining, scored: ScoredBatch) -> tuple[dict[str, torch.Tensor], float]:
    """The same step in plain torch: whole batch, no micro-batches, no DeepSpeed."""
    from dvpo_ray.learning.policy_update import TokenBatch, loss, prepare

    prepared, _ = prepare(scored, 0, config.advantage, config.kl, 0.1)
    model = load_policy(folder, torch.float32, "eager")
    batch = pad_sequences(scored.prompt_ids.rows(), scored.response_ids.rows())
    log_probs, entropy = PolicyReader(model)(batch.input_ids, batch.attention_mask, batch.before_response, batch.targets)
    tokens = TokenBatch.of(prepared, list(range(len(scored))), None, "cpu")
    total, _ = loss(log_probs, entropy, tokens, config.advantage, config.ppo, config.kl, config.off_policy, 0.1)
    limit = config.rollout.rows_per_step * config.rollout.max_new_tokens
    (total / (scored.tokens if config.ppo.loss_normaliser == "tokens" else limit)).backward()
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.learner.grad_clip))
    learner = config.learner
    optimizer = torch.optim.AdamW(model.parameters(), lr=learner.learning_rate, betas=learner.betas, weight_decay=0.0)
    optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}, norm


def test_a_scorer_without_value_model_gives_reference_log_probs(
    rollouts: RolloutPool, ray: ClusterSection, tiny_model: Path
) -> None:
    config = settings()
    pool = ScorerPool(str(tiny_model), None, MODEL, config.scorer, 1.0, ray)
    pool.wait_ready()
    try:
        asked = requests(10, seed=9)
        handles = list(pool.score(rollouts.generate(asked)))
        batches = pool.fetch(handles)
        assert [len(batch) for batch in batches] == [4, 4, 2]
        rows = [row for batch in batches for row in batch.rows]
        assert sorted(rows) == sorted(r.row for r in asked)
        for batch in batches:
            assert np.abs(batch.log_probs.flat - batch.ref_log_probs.flat).max() <= 1e-3
    finally:
        pool.stop()


def scores_by_row(batches: list[ScoredBatch]) -> dict[str, np.ndarray]:
    return {row: log_probs for batch in batches for row, log_probs in zip(batch.rows, batch.ref_log_probs.rows(), strict=True)}


@pytest.mark.fresh
def test_scorers_come_and_go_with_the_work_and_nothing_is_lost(ray: ClusterSection, tiny_model: Path) -> None:
    config = scorer_section(rows_per_call=2, max_actors=2, scale_up_after_s=0.0, scale_down_after_s=0.5, cpu_threads=1)
    pool = ScorerPool(str(tiny_model), None, MODEL, config, 1.0, ray)
    pool.wait_ready()
    rows = scored_batch([6] * 40, seed=3)
    ragged = (rows.prompt_ids, rows.response_ids, rows.log_probs, rows.versions)
    columns = [part.rows() for part in ragged]
    answers = [Trajectory(row, *(column[i] for column in columns), "stop") for i, row in enumerate(rows.rows)]
    refs = [ray_module.put(answer) for answer in answers]
    sizes, handles = {pool.size}, []
    try:
        deadline = time.monotonic() + 120
        while 2 not in sizes and time.monotonic() < deadline:
            handles = list(pool.score(refs))
            pool.wait(handles)
            sizes.add(pool.size)
        assert sizes == {1, 2}
        before = handles
        handles = list(pool.score(refs))
        found, again = scores_by_row(pool.fetch(before)), scores_by_row(pool.fetch(handles))
        assert set(found) == set(again) == set(rows.rows)
        assert all(np.allclose(found[row], again[row], atol=1e-5) for row in found)
        assert pool.cache_hits() > 0, "a sequence that comes to a scorer again is not computed again"
        waiting = threading.Event()
        while pool.size > 1 and time.monotonic() < deadline:
            waiting.wait(0.1)
        assert pool.size == 1
        assert len(pool.fetch(handles)) == 20, "what an ended scorer scored is still there"
    finally:
        pool.stop()

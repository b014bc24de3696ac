"""The rollout actor: one vLLM engine that streams answers as they finish and takes new weights between steps."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from actors.cluster.busy import BusyClock
from actors.cluster.metrics import busy_counter, count, show
from actors.cluster.node_facts import doubt
from actors.cluster.nodes import this_actor, this_node
from actors.cluster.watchdog import dump_process_tree_stacks
from actors.rollout.answer_tokens import AnswerTokens, sampled_by
from actors.rollout.engine_log import EngineLog, engine_errors, start_errors
from actors.rollout.episodes import Episode
from actors.rollout.leftovers import clear, ending_before_us, keep_sockets_together, traces_of_children
from actors.weights.buckets import SharedBuffer, verify
from dvpo_ray.config.sections import GenerationSection, settled
from dvpo_ray.data import TurnJoiner, load_tokenizer, turn_end
from dvpo_ray.errors import (
    ActorFailedError,
    DamagedWeightsError,
    ModelError,
    PermanentFailureError,
    RowDeadlineError,
    WeightSyncError,
)
from dvpo_ray.io.error_text import said_of
from dvpo_ray.maths.seeds import sampling_seed
from dvpo_ray.models.folder import weights_sha256
from dvpo_ray.models.packaged import folder_of
from dvpo_ray.runs.prometheus import ENGINE_FENCED, ENGINE_VERSION, ENVIRONMENT_FAILURES, ROLLOUT_ROWS, ROLLOUT_TOKENS
from dvpo_ray.types import (
    Adapters,
    Channel,
    EngineLeftovers,
    PlainSampling,
    RolloutRequest,
    ServedWeights,
    Trajectory,
    WeightBucket,
    Written,
)

MAX_BATCHED_TOKENS = 4096
# How often it is looked whether the engine that owes an answer lives.
LOOK_S = 5.0


class RolloutActor:
    """Holds one AsyncLLM engine. All methods run on the actor's event loop.

    Answers under way when an update begins pause and go on with the new weights; each token carries the version that sampled
    it. New requests wait for the update. The engine is fenced (refuses to generate) after an update that failed, until one
    succeeds.
    """

    def __init__(
        self,
        model: str,
        config: GenerationSection,
        seed: int,
        trust_remote_code: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """``model`` is its place, as ``folder_of`` takes it."""
        self._place, self._model = model, Path(model)
        self._template_arguments = chat_template_kwargs
        self._config = config
        self._seed = seed
        self._trust_remote_code = trust_remote_code
        self._engine: Any = None
        self._log = EngineLog()
        # What was seen of them: those of a process that has died are seen no more.
        self._traces = EngineLeftovers()
        self._stopped = False
        self._fence: str | None = "the engine has not started"
        self._served = asyncio.Event()
        self._served.set()
        self._expected: tuple[int, int] | None = None
        self._payload = hashlib.sha256()
        self._buffer = SharedBuffer()
        self._loading_seconds = 0.0
        self._under_way: set[asyncio.Task[Trajectory]] = set()
        # When the engine last finished an answer, by the loop's clock.
        self._finished = 0.0
        self._told_stacks = False
        self._received = 0
        self._base_sha256: str | None = None
        self._stop_ids: tuple[int, ...] = ()
        # Of those who need it: answers of one turn do not.
        self._joiner: TurnJoiner | None = None
        self._busy = BusyClock(busy_counter("rollout"))

    async def start(self, before: EngineLeftovers | None = None) -> tuple[str, EngineLeftovers]:
        """Start the engine on the weights in the model folder; returns their checksum, and what is left should it be killed.

        ``before`` is what an engine that was killed left; what of it is on this node is removed.
        """
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        clear(before or EngineLeftovers())
        if not torch.cuda.is_available():
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = thread_binding(self._config)
        self._model = await asyncio.to_thread(folder_of, self._place)
        self._stop_ids = await asyncio.to_thread(stop_ids, self._model, self._trust_remote_code, self._template_arguments)
        args = engine_arguments(str(self._model), self._config, self._seed, self._trust_remote_code)
        keep_sockets_together()
        self._log.follow()
        # Meanwhile the actor tells its traces: a process that is killed while it starts cannot any more.
        try:
            with start_errors(self._log):
                self._engine = await asyncio.to_thread(start_engine, args)
        except BaseException:
            await asyncio.to_thread(clear, self._known_traces())
            raise
        self._log.watch(pid for pid, _ in traces_of_children().processes)
        with engine_errors(self._log):
            await self._engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info={}))
            checksum = await self._checksum()
            await self._engine.update_weight_version("0")
        self._serve(0)
        return checksum, self._known_traces()

    async def generate(self, requests: Sequence[RolloutRequest]) -> AsyncIterator[Trajectory]:
        """Stream one Trajectory for each request, in the order they finish; ends early when they are cancelled.

        Raises:
            RowDeadlineError: no answer was finished for ``row_timeout_s``.
            WeightSyncError: the engine is fenced.
            ModelError: an environment is asked for, and the chat template cannot write its replies.
        """
        await self._until_served()
        if self._joiner is None and any(request.environment is not None for request in requests):
            self._joiner = await asyncio.to_thread(self._make_joiner)
        tasks = [asyncio.create_task(self._answer(request)) for request in requests]
        self._under_way.update(tasks)
        self._busy.enter()
        try:
            for finished in asyncio.as_completed(tasks):
                try:
                    answer = await finished
                except asyncio.CancelledError:
                    return
                count(ROLLOUT_ROWS)
                count(ROLLOUT_TOKENS, int(answer.action_mask.sum()))
                yield answer
        finally:
            self._busy.leave()
            self._under_way.difference_update(tasks)
            for task in tasks:
                task.cancel()

    def _make_joiner(self) -> TurnJoiner:
        return TurnJoiner(load_tokenizer(self._model, self._trust_remote_code, self._template_arguments))

    async def cancel(self) -> None:
        """Give up all answers under way, and an update that no more buckets will come for."""
        await self.abandon_update()
        for task in self._under_way:
            task.cancel()

    async def load_bucket(self, bucket: WeightBucket, place: int = 0) -> ServedWeights | None:
        """Verify and load one bucket of a version; buckets come in order. Serves the version after the last, and says so.

        ``place`` is this engine's among those that a broadcast is for.

        A damaged bucket is refused and may be sent again. From the first good bucket on the engine is fenced, and it stays so
        after a failure, until all buckets of a version are loaded.
        """
        if bucket.channel is None:
            await asyncio.to_thread(verify, bucket)
            began = time.monotonic()
        else:
            began = time.monotonic()
            await self._receive(bucket, bucket.channel, place)
        if bucket.adapters is not None:
            await asyncio.to_thread(self._check_base, bucket.adapters)
        try:
            with engine_errors(self._log):
                return await self._take(bucket, began)
        except BaseException:
            await self.abandon_update()
            raise

    async def _receive(self, bucket: WeightBucket, channel: Channel, place: int) -> None:
        """Let every worker receive and verify a bucket; the engine neither generates meanwhile nor changes its weights.

        Raises:
            DamagedWeightsError: it did not come whole.
        """
        given = (asdict(channel), place, bucket.bytes, bucket.digest)
        with engine_errors(self._log):
            troubles = await self._engine.collective_rpc("receive_bucket", args=given)
        if any(troubles):
            raise DamagedWeightsError(f"{bucket} did not come whole: {next(filter(None, troubles))}; it was refused")

    async def _take(self, bucket: WeightBucket, began: float) -> ServedWeights | None:
        """Load a verified bucket, for which the engine has not generated since ``began``."""
        if bucket.index == 0:
            await self._begin_update(bucket.version)
        if self._expected != (bucket.version, bucket.index):
            raise WeightSyncError(f"bucket {bucket.index} of weights {bucket.version} came, expected {self._expected}")
        self._expected = (bucket.version, bucket.index + 1)
        self._payload.update(bucket.digest.encode())
        self._received += bucket.bytes
        await self._load(bucket)
        self._loading_seconds += time.monotonic() - began
        return await self._finish_update(bucket.version) if bucket.index + 1 == bucket.count else None

    async def abandon_update(self) -> None:
        """Stop waiting for the rest of an update: the engine stays fenced, and who waits for it is told so."""
        self._expected = None
        self._served.set()

    async def _begin_update(self, version: int) -> None:
        self._served.clear()
        self._fence = f"an update to version {version} did not complete"
        show(ENGINE_FENCED, 1)
        self._payload = hashlib.sha256()
        self._loading_seconds, self._received = 0.0, 0
        await self._engine.pause_generation(mode="keep", clear_cache=True)
        await self._engine.collective_rpc("abandon_weight_update")
        await self._engine.start_weight_update()
        self._expected = (version, 0)

    async def _load(self, bucket: WeightBucket) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        # A bucket that was broadcast is in the workers' memory already.
        path = bucket.path
        if bucket.data is not None:
            self._buffer.bytes(bucket.bytes).numpy()[:] = bucket.data
            path = self._buffer.path
        tensors = [[spec.name, spec.dtype, list(spec.shape)] for spec in bucket.tensors]
        scale = None if bucket.adapters is None else bucket.adapters.scale
        update = {"path": path, "tensors": tensors, "adapter_scale": scale}
        await self._engine.update_weights(WeightTransferUpdateRequest(update_info=update))

    async def _finish_update(self, version: int) -> ServedWeights:
        began = time.monotonic()
        await self._engine.finish_weight_update(weight_version=str(version))
        await self._engine.reset_prefix_cache()
        checksum = await self._checksum()
        await self._engine.resume_generation()
        self._expected = None
        self._serve(version)
        self._served.set()
        seconds = self._loading_seconds + time.monotonic() - began
        return ServedWeights(version, self._payload.hexdigest(), checksum, seconds, self._received)

    def _check_base(self, adapters: Adapters) -> None:
        """Refuse adapters of other weights than those that this node's model folder holds.

        Raises:
            ModelError: naming both.
        """
        self._base_sha256 = self._base_sha256 or weights_sha256(self._model)
        if self._base_sha256 != adapters.base_sha256:
            raise ModelError(
                f"the learner trains adapters over weights with sha256 {adapters.base_sha256[:16]}..., model folder "
                f"'{self._model}' on the engine's node holds {self._base_sha256[:16]}...: copy the same folder to both"
            )

    async def traces(self) -> EngineLeftovers:
        """What would be left if this process were killed now."""
        return self._known_traces()

    def _known_traces(self) -> EngineLeftovers:
        self._traces |= traces_of_children()
        return self._traces

    def _serve(self, version: int) -> None:
        self._fence = None
        self._log.mark()
        show(ENGINE_FENCED, 0)
        show(ENGINE_VERSION, version)

    async def pid(self) -> int:
        """This process's id."""
        return os.getpid()

    async def node(self) -> str:
        """Id of the Ray node this process is on."""
        return this_node()

    async def doubts(self) -> list[str]:
        """What speaks against the engine's settings on its node. Of GPUs vLLM says it itself, and this process stays off them."""
        return [] if torch.cuda.is_available() else await asyncio.to_thread(doubt, "an engine", self._config.engine.dtype)

    async def busy_seconds(self) -> float:
        """Time since the start in which at least one answer was under way, in seconds."""
        return self._busy.seconds

    async def stop(self) -> None:
        """Shut the engine's processes down, also while they start, and remove what vLLM leaves: sockets, and memory that workers
        of an engine share."""
        if self._stopped:
            return
        self._stopped = True
        engine, self._engine = self._engine, None
        self._fence = "the engine was stopped"
        self._buffer.close()
        traces = self._known_traces()
        try:
            if engine is not None:
                await asyncio.to_thread(engine.shutdown)
        finally:
            await asyncio.to_thread(clear, ending_before_us(traces))

    async def _answer(self, request: RolloutRequest) -> Trajectory:
        """The answer to one request, or its error."""
        if request.candidate is not None:
            raise PermanentFailureError(
                f"row {request.row}: it is for candidate {request.candidate}, and engines hold one policy: a plan of candidates "
                "needs rollouts of its own"
            )
        if request.environment is not None and request.plain is None:
            return await self._episode(request)
        tokens = AnswerTokens(request)
        if request.plain is not None:
            sampling = plain_sampling_params(request.plain, request.seed)
        else:
            sampling = sampling_params(self._config, request.seed, self._stop_ids, self._most_tokens(request) - len(tokens.ids))
        written, end_state = await self._turn(request, str(request.row), tokens.all_ids, sampling)
        tokens.wrote(written)
        return tokens.trajectory(end_state)

    async def _episode(self, request: RolloutRequest) -> Trajectory:
        """The answer of several turns to one request. Turns that come after an update began wait for the new weights."""
        assert self._joiner is not None

        async def write(turn: int, ids: list[int], most: int) -> tuple[Written, str]:
            await self._until_served()
            sampling = sampling_params(self._config, sampling_seed(request.seed, "turn", turn), self._stop_ids, most)
            return await self._turn(request, f"{request.row}#{turn}", ids, sampling)

        return await Episode(request, self._most_tokens(request), self._joiner, write, _environment_failed).run()

    def _most_tokens(self, request: RolloutRequest) -> int:
        return request.max_new_tokens or self._config.max_new_tokens

    async def _until_served(self) -> None:
        """Wait for an update that is under way.

        Raises:
            WeightSyncError: the engine is fenced.
        """
        await self._served.wait()
        if self._fence:
            raise WeightSyncError(f"rollout engine is fenced: {self._fence}")

    async def _turn(self, request: RolloutRequest, request_id: str, ids: list[int], sampling: Any) -> tuple[Written, str]:
        """What the engine writes after these tokens, and why it stopped, or its error.

        Rows that wait behind others, in the engine's own queue, are not late: the engine is, once it finishes nothing.
        """
        limit, clock, engine = self._config.row_timeout_s, asyncio.get_running_loop().time, self._engine
        asked, task = clock(), asyncio.create_task(self._final(request, request_id, ids, sampling))
        try:
            while not task.done():
                left = max(asked, self._finished) + limit - clock()
                if left <= 0:
                    self._tell_stacks_once()
                    raise RowDeadlineError(
                        f"row {request.row}: no complete answer within {limit} s, nor any other of this engine; raise "
                        "rollout.row_timeout_s or lower rollout.max_new_tokens",
                        request.row,
                    )
                dead = engine.errored
                await asyncio.wait([task], timeout=min(left, LOOK_S))
                # vLLM forgets a request that comes just as its core dies.
                if dead and not task.done():
                    with engine_errors(self._log):
                        raise engine.dead_error
            output = task.result()
            return sampled_by(output, request.row), str(output.finish_reason)
        finally:
            task.cancel()

    async def _final(self, request: RolloutRequest, request_id: str, ids: list[int], sampling: Any) -> Any:
        """What the engine says at last.

        Raises:
            PermanentFailureError: it refuses the request.
        """
        from vllm.exceptions import VLLMClientError

        final = None
        try:
            with engine_errors(self._log):
                async for output in self._engine.generate({"prompt_token_ids": ids}, sampling, request_id):
                    final = output
        except VLLMClientError as error:
            raise PermanentFailureError(f"row {request.row}: {this_actor()} refuses it: {said_of(error).explained}") from error
        if final is None:
            raise ActorFailedError(f"row {request.row}: the engine ended without an answer")
        self._finished = asyncio.get_running_loop().time()
        return final.outputs[0]

    def _tell_stacks_once(self) -> None:
        """Where the engine hangs, to the log; all rows of an engine that hangs miss their deadlines together."""
        if not self._told_stacks:
            self._told_stacks = True
            dump_process_tree_stacks()

    async def _checksum(self) -> str:
        """One digest over those of every worker."""
        return hashlib.sha256("".join(await self._engine.collective_rpc("weight_digest")).encode()).hexdigest()


def engine_arguments(model: str, config: GenerationSection, seed: int, trust_remote_code: bool = False) -> Any:
    """vLLM's arguments (``AsyncEngineArgs``) for an engine of ours."""
    from vllm.config import WeightTransferConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

    from actors.rollout.one_process import ONE_PROCESS

    engine = config.engine
    on_cpu = not torch.cuda.is_available()
    one_process = on_cpu and engine.tensor_parallel == 1
    return AsyncEngineArgs(
        model=model,
        dtype=engine.dtype,
        max_model_len=engine.max_model_len,
        max_num_seqs=engine.max_num_seqs,
        enforce_eager=engine.enforce_eager,
        tensor_parallel_size=engine.tensor_parallel,
        distributed_executor_backend=ONE_PROCESS if one_process else None,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        kv_cache_memory_bytes=settled(engine.kv_cache_mib) * 2**20 if on_cpu else None,
        enable_prefix_caching=engine.prefix_caching,
        # A prompt split over two engine steps makes vLLM rewind the row's random generator, which CPU generators cannot
        # do: the engine would die ("CPU Generator does not use offset").
        enable_chunked_prefill=not on_cpu,
        max_num_batched_tokens=max(engine.max_model_len, MAX_BATCHED_TOKENS),
        trust_remote_code=trust_remote_code,
        seed=seed,
        # Log-probs of the distribution sampled from; the default would ignore temperature and top-p.
        logprobs_mode="processed_logprobs",
        worker_extension_cls="actors.rollout.vllm_worker.DvpoWorkerExtension",
        weight_transfer_config=WeightTransferConfig(backend="dvpo_buckets"),
        disable_log_stats=True,
    )


def start_engine(args: Any) -> Any:
    """vLLM's engine (``AsyncLLM``) with these arguments, in processes of its own."""
    from vllm.v1.engine.async_llm import AsyncLLM

    from actors.rollout.one_process import bound_threads

    with bound_threads(args):
        return AsyncLLM.from_engine_args(args)


def stop_ids(model: Path, trust_remote_code: bool, arguments: Mapping[str, Any] | None = None) -> tuple[int, ...]:
    """Ids of the tokens with which a model in a folder ends its turns.

    Raises:
        ModelError: the folder does not say.
    """
    return turn_end(load_tokenizer(model, trust_remote_code, arguments), model).stop_ids


def sampling_params(config: GenerationSection, seed: int, stop_ids: Sequence[int] = (), max_tokens: int | None = None) -> Any:
    """vLLM's sampling parameters (``SamplingParams``) for one answer, which any of ``stop_ids`` ends, and is part of."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_p=config.min_p,
        repetition_penalty=config.repetition_penalty,
        stop=config.stop,
        max_tokens=config.max_new_tokens if max_tokens is None else max_tokens,
        stop_token_ids=list(stop_ids),
        seed=seed,
        logprobs=0,
        # Texts are looked for in text.
        detokenize=bool(config.stop),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def plain_sampling_params(plain: PlainSampling, seed: int) -> Any:
    """vLLM's sampling parameters for tokens of the whole distribution, which no token ends."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=plain.temperature,
        max_tokens=plain.tokens,
        ignore_eos=True,
        seed=seed,
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def thread_binding(config: GenerationSection) -> str:
    """vLLM's thread binding on CPU: the only engine gets a thread bound to each core, several are left to the system.

    Bound threads are not moved while others wait for them (32 answers of 40 tokens take 2.4 s instead of 2.6 to 3.5 on two
    cores), but engines that share a machine would all be bound to the same cores.
    """
    if config.cpu_threads or config.actors > 1 or config.engine.tensor_parallel > 1:
        return "nobind"
    return ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))


def _environment_failed(kind: str, text: str) -> None:
    """Count a failure of an environment, and tell it."""
    count(ENVIRONMENT_FAILURES, kind=kind)
    logging.getLogger(__name__).warning(text)

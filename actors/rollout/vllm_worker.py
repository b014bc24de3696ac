"""Runs inside vLLM's worker process: the weight transfer engine that reads buckets of weights, and digests of what is served.

Importing this module registers the engine, so naming ``DvpoWorkerExtension`` as ``worker_extension_cls`` is all it takes.
What crosses into the worker is plain JSON (where a bucket is and what lies there) and, in a broadcast, the bucket's bytes;
tensors never travel as pickles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import _place_kernel_tensors, get_layerwise_info

from actors.cluster.watchdog import answer_with_stacks
from actors.weights.broadcast import Receiver
from actors.weights.buckets import mapped, read_bucket
from dvpo_ray.io.digests import digest
from dvpo_ray.models.lora import merged_tensors
from dvpo_ray.types import Channel, TensorSpec

BACKEND = "dvpo_buckets"


@dataclass
class BucketInitInfo(WeightTransferInitInfo):
    """Nothing to negotiate: every bucket says where it is."""


@dataclass
class BucketUpdateInfo(WeightTransferUpdateInfo):
    """Where a bucket lies, verified, and the (name, type, shape) of its tensors.

    Without a path it is the one that was broadcast. With ``adapter_scale`` the tensors are LoRA matrices.
    """

    path: str
    tensors: list[list[Any]]
    adapter_scale: float | None = None


class BucketWeightTransferEngine(WeightTransferEngine[BucketInitInfo, BucketUpdateInfo]):
    """Loads checkpoint-format tensors, a bucket at a time, through vLLM's layerwise reload.

    Layerwise reload is required: CPU kernels repack weights after loading, so writing parameters in place would fail.

    LoRA matrices are kept until all have come. Then the layers they belong to are loaded as if their merged weights had come,
    and the others stay as they are: the same layers must have adapters as long as the engine lives.
    """

    init_info_cls = BucketInitInfo
    update_info_cls = BucketUpdateInfo
    _receiver: Receiver | None = None
    _received: Tensor

    def init_transfer_engine(self, init_info: BucketInitInfo) -> None:
        """No connection to open."""

    def receive_broadcast(self, channel: Channel, rank: int, size: int, expected: str) -> str:
        """Receive a bucket, to be loaded next; returns what is wrong with it, if anything is."""
        self._receiver = self._receiver or Receiver(self.device)
        try:
            self._received = self._receiver.receive(channel, rank, size)
        except RuntimeError as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
        found = digest(self._received)
        return "" if found == expected else f"digest {found[:16]}..., expected {expected[:16]}..."

    def start_weight_update(self) -> None:
        """Prepare every layer to take checkpoint-format weights again."""
        self._adapters: dict[str, Tensor] = {}
        self._scale: float | None = None
        pack_experts_again(self.model)
        self._abandon_update()
        initialize_layerwise_reload(self.model)

    def _abandon_update(self) -> None:
        """Put back the layers that an earlier, failed update left half loaded; without one, nothing happens.

        Initialising skips such layers, and the tensors they had taken would be mixed with the new ones.
        """
        half_loaded = [info for info in map(get_layerwise_info, self.model.modules()) if info.can_load()]
        if half_loaded:
            for info in half_loaded:
                info.loaded_weights = []
                info.load_numel = 0
            finalize_layerwise_reload(self.model, self.model_config)

    def receive_weights(self, update_info: BucketUpdateInfo) -> None:
        """Load a bucket's tensors into the model, and keep copies of those whose layers wait for the next bucket."""
        specs = [TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in update_info.tensors]
        tensors = read_bucket(mapped(update_info.path) if update_info.path else self._received, specs)
        self._scale = update_info.adapter_scale
        if self._scale is not None:
            self._adapters |= {name: tensor.to(self.device, copy=True) for name, tensor in tensors}
            return
        self.model.load_weights(tensors)
        for module in self.model.modules():
            for _, call in get_layerwise_info(module).loaded_weights:
                for name, value in call.arguments.items():
                    if name != "param" and isinstance(value, Tensor):
                        call.arguments[name] = value.clone()

    def finish_weight_update(self) -> None:
        """Process the loaded layers for inference."""
        if self._scale is not None:
            self._load_merged(self._scale)
        finalize_layerwise_reload(self.model, self.model_config)
        if self._scale is None:
            repack_tied_heads(self.model)

    def _load_merged(self, scale: float) -> None:
        """Load the layers that have adapters, their base from the folder that the engine was started on."""
        fused = getattr(self.model, "packed_modules_mapping", {}).values()
        folder, dtype = Path(self.model_config.model), self.model_config.dtype
        self.model.load_weights(merged_tensors(folder, self._adapters, scale, fused, dtype))
        self._adapters = {}
        keep_untouched(self.model)

    def shutdown(self) -> None:
        """Leave the group of the last broadcast."""
        if self._receiver is not None:
            self._receiver.close()


def keep_untouched(model: Any) -> None:
    """Give layers that took no weights back what they served; vLLM would as well, with a warning for each.

    Attention layers are left to vLLM: some of them derive weights from other layers' at the end of an update.

    Raises:
        RuntimeError: a layer took some of its weights and not the others.
    """
    for name, layer in model.named_modules():
        info = get_layerwise_info(layer)
        if not info.can_load() or is_deferred_attention_layer(layer):
            continue
        if info.load_numel:
            raise RuntimeError(
                f"layer '{name}' took {info.load_numel} of {info.load_numel_total} elements: LoRA cannot serve this model, "
                "train without policy.lora"
            )
        _place_kernel_tensors(layer, info)
        info.reset()


def repack_tied_heads(model: Any) -> None:
    """Let output heads that share the embedding's weight make their packed copy again.

    Layerwise reload processes the layers it loaded. A tied head loads nothing, so on CPU, where a layer multiplies by a packed
    copy of its weight, it would go on with the old one; no checksum of parameters shows it.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    layers = [layer for layer in model.modules() if isinstance(layer, VocabParallelEmbedding)]
    embeddings = {layer.weight.data_ptr() for layer in layers if not isinstance(layer, ParallelLMHead)}
    for layer in layers:
        if isinstance(layer, ParallelLMHead) and layer.weight.data_ptr() in embeddings:
            layer.quant_method.process_weights_after_loading(layer)


def pack_experts_again(model: Any) -> None:
    """Let experts on CPU pack the weights of every update; a second call changes nothing.

    Their kernel reads a packed layout. vLLM makes it when a kernel is set up, which is once: an update's weights, of the same
    number as the packed ones, would be copied in their place as they came.
    """
    from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    for layer in model.modules():
        method = getattr(layer, "quant_method", None)
        if not isinstance(method, UnquantizedFusedMoEMethod) or method.unquantized_backend != UnquantizedMoeBackend.CPU:
            continue
        if not isinstance(method.process_weights_after_loading, _PackAgain):
            method.process_weights_after_loading = _PackAgain(method)


class _PackAgain:
    """What follows the loading of a layer of experts whose kernel is set up."""

    def __init__(self, method: Any) -> None:
        self._method = method
        self._process = method.process_weights_after_loading

    def __call__(self, layer: Any) -> None:
        self._process(layer)
        self._method.moe_kernel.fused_experts.process_weights_after_loading(layer)


@torch.inference_mode()
def packed_answers(model: Any) -> Iterator[tuple[str, Tensor]]:
    """(name, product with a fixed vector) of every layer that multiplies by a packed copy of its weight."""
    for name, layer in model.named_modules():
        if hasattr(layer, "cpu_linear"):
            width = _width(layer)
            dtype = next(layer.parameters()).dtype
            probe = torch.randn(1, width, generator=torch.Generator().manual_seed(width)).to(dtype)
            yield f"{name}.packed", layer.quant_method.apply(layer, probe)


def _width(layer: Any) -> int:
    """Numbers that a layer multiplies at a time, whatever it calls them: routers of experts are not cut over workers."""
    names = ("embedding_dim", "input_size_per_partition", "input_size")
    return int(next(getattr(layer, name) for name in names if hasattr(layer, name)))


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, BucketWeightTransferEngine)


answer_with_stacks()


class DvpoWorkerExtension:
    """Mixed into vLLM's worker class."""

    def weight_digest(self) -> str:
        """Digest over the names and digests of all parameters, buffers and packed weights of this worker.

        On CPU vLLM multiplies by packed copies whose bytes cannot be read, and drops the weights they were made of. Such a
        layer is known by its answer to a fixed input.
        """
        model = self.model_runner.get_model()  # type: ignore[attr-defined]
        tensors = dict(model.named_parameters()) | dict(model.named_buffers()) | dict(packed_answers(model))

        def named(name: str) -> bytes:
            return f"{name}={digest(tensors[name].detach().contiguous().flatten().view(torch.uint8))};".encode()

        # One after the other: what is hashed on a GPU takes memory there, on the stream that loaded the weights.
        return xxhash.xxh3_128_hexdigest(b"".join(map(named, sorted(tensors))))

    def receive_bucket(self, channel: dict[str, Any], place: int, size: int, expected: str) -> str:
        """Receive a bucket that is broadcast to all workers of all engines; returns what is wrong with it, if anything is."""
        workers, rank = self.parallel_config.world_size, self.rank  # type: ignore[attr-defined]
        engine = self.weight_transfer_engine  # type: ignore[attr-defined]
        return str(engine.receive_broadcast(Channel(**channel), 1 + place * workers + rank, size, expected))

    def abandon_weight_update(self) -> None:
        """Allow a new update to begin where one was broken off."""
        self._weight_update_active = False

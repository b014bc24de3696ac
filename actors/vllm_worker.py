"""Runs inside vLLM's worker process: the weight transfer engine that reads published safetensors.

Importing this module registers the engine, so naming ``DvpoWorkerExtension`` as ``worker_extension_cls`` is all it takes.
The metadata that crosses into the worker is plain JSON (a path and a version); tensors never travel as pickles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

BACKEND = "dvpo_safetensors"


@dataclass
class SafetensorsInitInfo(WeightTransferInitInfo):
    """Nothing to negotiate: the file system is the channel."""


@dataclass
class SafetensorsUpdateInfo(WeightTransferUpdateInfo):
    """Where the published weights lie; already verified by the rollout actor."""

    path: str


class SafetensorsWeightTransferEngine(WeightTransferEngine[SafetensorsInitInfo, SafetensorsUpdateInfo]):
    """Loads checkpoint-format tensors from a local safetensors file through vLLM's layerwise reload.

    Layerwise reload is required: CPU kernels repack weights after loading, so writing parameters in place would fail.
    """

    init_info_cls = SafetensorsInitInfo
    update_info_cls = SafetensorsUpdateInfo

    def init_transfer_engine(self, init_info: SafetensorsInitInfo) -> None:
        """No connection to open."""

    def start_weight_update(self) -> None:
        """Prepare every layer to take checkpoint-format weights again."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        self._abandon_update()
        initialize_layerwise_reload(self.model)

    def _abandon_update(self) -> None:
        """Put back the layers that an earlier, failed update left half loaded; without one, nothing happens.

        Initialising skips such layers, and the tensors they had taken would be mixed with the new ones.
        """
        from vllm.model_executor.model_loader.reload.layerwise import finalize_layerwise_reload, get_layerwise_info

        half_loaded = [info for info in map(get_layerwise_info, self.model.modules()) if info.can_load()]
        if half_loaded:
            for info in half_loaded:
                info.loaded_weights = []
                info.load_numel = 0
            finalize_layerwise_reload(self.model, self.model_config)

    def receive_weights(self, update_info: SafetensorsUpdateInfo) -> None:
        """Stream the tensors of the file into the model."""
        with safe_open(update_info.path, framework="pt", device="cpu") as tensors:
            self.model.load_weights((name, tensors.get_tensor(name)) for name in tensors.keys())  # noqa: SIM118

    def finish_weight_update(self) -> None:
        """Process the loaded layers for inference."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        repack_tied_heads(self.model)

    def shutdown(self) -> None:
        """Nothing is held open."""


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


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, SafetensorsWeightTransferEngine)


class DvpoWorkerExtension:
    """Mixed into vLLM's worker class; exists so that the worker imports this module."""

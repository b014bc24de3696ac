"""What the installed vLLM can serve, read from its source: importing it would take longer than the rest of a job's checks."""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

CPU_ATTENTION, HEAD_SIZES = "v1/attention/backends/cpu_attn.py", "get_supported_head_sizes"
REGISTRY, MODELS = "model_executor/models/registry.py", ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS")


@cache
def cpu_head_sizes() -> frozenset[int]:
    """Sizes of attention heads that vLLM's CPU kernels have; empty when it does not say so in the way that is known."""
    for node in ast.walk(_source(CPU_ATTENTION)):
        if isinstance(node, ast.FunctionDef) and node.name == HEAD_SIZES:
            return frozenset(
                size
                for end in ast.walk(node)
                if isinstance(end, ast.Return) and isinstance(end.value, ast.List)
                for entry in end.value.elts
                if isinstance(entry, ast.Constant) and isinstance(size := entry.value, int)
            )
    return frozenset()


@cache
def architectures() -> frozenset[str]:
    """Names of the architectures that vLLM has code of its own for; empty when it does not say so in the way that is known."""
    return frozenset(
        key.value
        for node in _source(REGISTRY).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        if any(isinstance(target, ast.Name) and target.id in MODELS for target in node.targets)
        for key in node.value.keys
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    )


def _source(file: str) -> ast.Module:
    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return ast.Module([], [])
    path = Path(spec.submodule_search_locations[0]) / file
    return ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])

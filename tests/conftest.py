"""Fixtures shared by all tests: a tiny tokenizer and a tiny model, made on the spot."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

# How fast a machine is, and what else it does, is not what tests are about.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

pytest_plugins = ["tests.support.disks", "tests.support.real"]


def pytest_collection_finish() -> None:
    """What is imported stays: searching it for garbage again and again takes longer than many a test."""
    gc.collect()
    gc.freeze()


# Who has trained by ZeRO 3 has claimed more memory than a fork is given, and Ray forks: what starts Ray comes first.
FOLDERS = ("e2e", "faults", "integration", "component", "unit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests in the order of their folders."""
    here = Path(__file__).parent
    items.sort(key=lambda item: FOLDERS.index(item.path.relative_to(here).parts[0]))


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level tokenizer of 300 tokens with a ChatML template."""
    from scripts.tiny_families import made_tokenizer

    return made_tokenizer()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A random Llama of 0.2 M parameters, saved as an ordinary model folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("tiny-model")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def process_group() -> Iterator[None]:
    """A process group of this process alone, for all tests that train in it: DeepSpeed keeps the first one."""
    import torch.distributed as dist

    from actors.learner.collectives import join_process_group
    from actors.learner.rank import free_port

    join_process_group(0, 1, "127.0.0.1", free_port(), 1)
    yield
    dist.destroy_process_group()

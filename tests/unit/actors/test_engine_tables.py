"""What vLLM can serve, as read from its source."""

from __future__ import annotations

from actors.rollout.engine_tables import architectures, cpu_head_sizes


def test_vllm_says_what_it_can_serve() -> None:
    assert {64, 128} <= cpu_head_sizes() and 20 not in cpu_head_sizes()
    assert {"LlamaForCausalLM", "Qwen2ForCausalLM", "Gemma3ForConditionalGeneration"} <= architectures()
    assert "NoSuchForCausalLM" not in architectures()

"""Modules that read a transformer at chosen token positions: log-probabilities of answers, and values along them.

Legend: input_ids [B, L] right-padded; positions [N] flat indices into B*L; N tokens of all answers together.
Only the hidden states at these positions reach a head, so logits of prompts and padding are never computed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dvpo_ray.models.loading import check_causal, load_whole, model_config
from dvpo_ray.models.own_head import own_logits

HEAD_CHUNK = 256
CACHED_LOGITS = 2**19
MIN_SHARED_PREFIX = 8
# How settings end that leave something to chance in training mode.
CHANCE = ("dropout", "pdrop", "layerdrop", "dropout_prob", "dropout_rate", "jitter_noise")


class PolicyReader(nn.Module):
    """A causal language model that returns log-probabilities of given tokens."""

    def __init__(
        self,
        model: Any,
        temperature: float = 1.0,
        with_entropy: bool = True,
        share_prefix: bool = True,
        packed: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.share_prefix = share_prefix
        # Rows longer than this are read without sharing: some rotary embeddings depend on a pass's length from there on.
        self.shared_up_to = sys.maxsize
        self.packed = packed
        self.temperature = temperature
        self.with_entropy = with_entropy
        # For models that cannot run what they do after their backbone by itself: their output layer alone.
        self.bare_head = False

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor, targets: Tensor, temperature: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of ``targets`` [N] and entropy of the distribution [N] (float32, nats) at ``temperature``, or else at
        the reader's own.

        The entropy has no gradient, and is 0 when the reader was made without it.

        ``positions`` are those of the tokens *before* the targets.
        """
        hidden = _hidden_at(self, input_ids, attention_mask, positions)
        head = self.model.get_output_embeddings() if self.bare_head else partial(own_logits, self.model)
        chunks = zip(hidden.split(HEAD_CHUNK), targets.split(HEAD_CHUNK), strict=True)
        at = self.temperature if temperature is None else temperature
        parts = [self._read(head, h, t, at) for h, t in chunks]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def _read(
        self, head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        if not (torch.is_grad_enabled() and hidden.requires_grad):
            return TokenLogProb.apply(head(hidden), targets, temperature, self.with_entropy)
        entropies: list[Tensor] = []

        def log_prob_of(hidden: Tensor) -> Tensor:
            # The second call is the recomputation in the backward pass.
            with_entropy = self.with_entropy and not entropies
            log_prob, entropy = TokenLogProb.apply(head(hidden), targets, temperature, with_entropy)
            entropies.append(entropy)
            return log_prob

        # Logits are the largest tensor by far (vocabulary wide): recompute a chunk's in the backward pass rather than keep all.
        return checkpoint(log_prob_of, hidden, use_reentrant=False), entropies[0]


class TokenLogProb(torch.autograd.Function):
    """log softmax(logits / temperature)[target] and the entropy, in float32 arithmetic, with few passes over the logits.

    logits [N, V] of any float type, targets [N]; returns two float32 vectors [N]. The entropy has no gradient, and is 0 when
    it is not asked for. On CPU a few rows at a time stay in the core's cache: 15 times faster than the built-in operators, which
    write several vocabulary-wide float32 tensors to memory.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float, with_entropy: bool) -> tuple[Tensor, Tensor]:
        """See the class."""
        log_prob = torch.empty(targets.shape, dtype=torch.float32, device=logits.device)
        log_z, entropy = torch.empty_like(log_prob), torch.zeros_like(log_prob)
        for rows in _blocks(logits):
            scaled = _scaled(logits[rows], temperature)
            highest = scaled.amax(-1, keepdim=True)
            shifted = scaled.sub_(highest)
            chosen = shifted.gather(1, targets[rows, None]).squeeze(1)
            weights = shifted.exp()
            total = weights.sum(-1)
            log_total = total.log()
            log_prob[rows] = chosen - log_total
            log_z[rows] = log_total + highest.squeeze(1)
            if with_entropy:
                entropy[rows] = log_total - torch.linalg.vecdot(weights, shifted) / total
        ctx.save_for_backward(logits, targets, log_z)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return log_prob, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """d log p(target) / d logits = (onehot(target) - softmax(logits / temperature)) / temperature."""
        logits, targets, log_z = ctx.saved_tensors
        scale = (gradients[0].float() / ctx.temperature)[:, None]
        out = torch.empty_like(logits)
        for rows in _blocks(logits):
            grad = _scaled(logits[rows], ctx.temperature).sub_(log_z[rows, None]).exp_().mul_(-scale[rows])
            out[rows] = grad.scatter_add_(1, targets[rows, None], scale[rows])
        return out, None, None, None


def _blocks(logits: Tensor) -> list[slice]:
    """Rows to work on at a time: all on a GPU; on a CPU as many as its cache holds."""
    size = max(1, CACHED_LOGITS // logits.shape[1]) if logits.device.type == "cpu" else max(1, logits.shape[0])
    return [slice(first, first + size) for first in range(0, logits.shape[0], size)]


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature as a new float32 tensor."""
    return logits.to(torch.float32, copy=True) if temperature == 1.0 else logits.float() / temperature


class ValueReader(nn.Module):
    """A value model that returns values at chosen positions."""

    def __init__(self, model: Any, share_prefix: bool = True, packed: bool = False) -> None:
        super().__init__()
        self.model = model
        self.share_prefix = share_prefix
        # As a policy's.
        self.shared_up_to = sys.maxsize
        self.packed = packed

    def forward(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        """Values at ``positions`` [N], float32.

        The head runs in float32: bfloat16 would round values near 1 to steps of 0.008, as large as one token's advantage.
        """
        hidden = self.hidden_at(input_ids, attention_mask, positions)
        head = self.model.score
        bias = None if head.bias is None else head.bias.float()
        return F.linear(hidden.float(), head.weight.float(), bias).squeeze(-1)

    def hidden_at(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        """What the head reads at ``positions`` [N, H]."""
        return _hidden_at(self, input_ids, attention_mask, positions)


def _hidden_at(reader: PolicyReader | ValueReader, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
    """Final hidden states at flat positions [N, H]; the rows' common beginning is computed once, unless that is off."""
    backbone = reader.model.base_model
    if reader.packed:
        return _packed_hidden_at(backbone, input_ids, attention_mask, positions)
    width = input_ids.shape[1]
    shared = shared_prefix(input_ids, positions) if reader.share_prefix and width <= reader.shared_up_to else 0
    if shared < MIN_SHARED_PREFIX or backbone.is_gradient_checkpointing:
        output = backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return output.last_hidden_state.flatten(0, 1)[positions]
    cache = backbone(input_ids=input_ids[:1, :shared], use_cache=True).past_key_values
    cache.batch_repeat_interleave(input_ids.shape[0])
    output = backbone(input_ids=input_ids[:, shared:], attention_mask=attention_mask, past_key_values=cache, use_cache=True)
    rows = positions // width
    return output.last_hidden_state.flatten(0, 1)[positions - (rows + 1) * shared]


def _packed_hidden_at(backbone: Any, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
    """Final hidden states at flat positions [N, H], of all rows laid end to end without padding.

    A token's place in its own row (``position_ids``) starts at 0 again with every row: this tells attention where to stop.
    """
    real = attention_mask.bool()
    places = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)[real]
    output = backbone(input_ids=input_ids[real][None], position_ids=places[None], use_cache=False)
    packed = real.flatten().cumsum(0) - 1
    return output.last_hidden_state[0][packed[positions]]


def shared_prefix(input_ids: Tensor, positions: Tensor) -> int:
    """Length of the beginning that all rows [B, L] have in common and that no wanted position [N] lies in.

    Chat prompts share a system prompt, and answers of one prompt share all of it. The keys and values of such a beginning
    are equal in every row, so one row's are computed and repeated; gradients add up through the repetition.
    """
    if input_ids.shape[0] < 2:
        return 0
    same = (input_ids == input_ids[:1]).all(0).long().cumprod(0).sum()
    return int(torch.minimum(same, (positions % input_ids.shape[1]).min()))


def load_policy(folder: Path, dtype: torch.dtype, attention: str, trust_remote_code: bool = False) -> Any:
    """A causal language model from a folder of safetensors, in evaluation mode, and without dropout in training mode as well:
    gradient checkpointing needs that mode, and log-probs that are compared must not depend on chance.

    Raises:
        ModelError: as ``model_config``, ``check_causal`` and ``load_whole``.
    """
    from transformers import AutoModelForCausalLM

    config = model_config(folder, trust_remote_code)
    check_causal(config, folder)
    no_dropout(config)
    options = {"dtype": dtype, "attn_implementation": kernel_for(config, attention), "trust_remote_code": trust_remote_code}
    return load_whole(AutoModelForCausalLM, folder, config, **options).eval()


def kernel_for(config: Any, attention: str) -> str:
    """The attention kernel to ask for: the wanted one, or eager where torch's would leave out a cap on attention logits.

    ``sdpa`` has no argument for such a cap (Gemma 2, arXiv 2408.00118, section 2), and transformers drops it without a word.
    """
    cap = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    if attention != "sdpa" or not cap:
        return attention
    logging.getLogger(__name__).warning(
        "model type '%s' caps its attention logits at %g, which attention = 'sdpa' cannot do: 'eager' is used instead",
        config.model_type,
        cap,
    )
    return "eager"


def no_dropout(config: Any) -> None:
    """Set every rate of dropout, and of noise in routers, that a model's configuration has to 0, whatever its architecture
    calls it."""
    # A multimodal model's language model has a configuration of its own.
    for part in {id(one): one for one in (config, config.get_text_config())}.values():
        for name, rate in vars(part).items():
            if isinstance(rate, float) and name.endswith(CHANCE):
                setattr(part, name, 0.0)


def freeze(model: nn.Module) -> nn.Module:
    """Evaluation mode, no gradients."""
    return model.eval().requires_grad_(False)


def parameter_hash(model: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of all parameters and buffers, in name order.

    The proof that a frozen model stayed frozen.
    """
    import hashlib

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

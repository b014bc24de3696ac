"""What a causal language model does after its backbone, as its own code does it: output layer, and scales or caps of logits.

Granite divides its logits, Cohere multiplies them, Gemma 2 caps them, MiniCPM scales what its output layer reads. Rather than
know models by name, their own ``forward`` is run with a backbone that gives hidden states computed before.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


class GivenOutput(tuple[Tensor]):
    """Hidden states as a backbone returns them, by name or as the first of a tuple; whatever else one may return (caches, router
    logits) is None."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Tensor | None:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[0] if name == "last_hidden_state" else None


class GivenBackbone:
    """Stands for a backbone, or a part of it (``self.model.decoder``), that has run already.

    It is no module: nothing of it reaches the model's parameters or hooks.
    """

    def __init__(self, hidden: Tensor) -> None:
        """``hidden`` [1, N, H]."""
        self._output = GivenOutput((hidden,))

    def __call__(self, *_args: Any, **_options: Any) -> GivenOutput:
        return self._output

    def __getattr__(self, name: str) -> GivenBackbone:
        if name.startswith("_"):
            raise AttributeError(name)
        return self


def own_logits(model: Any, hidden: Tensor) -> Tensor:
    """Logits [N, V] that a causal language model makes of its backbone's final hidden states [N, H].

    The model is left as it is: a view of it, with its attributes and modules but for the backbone, runs the class's ``forward``.
    Modules are called as always, so that hooks (ZeRO-3 gathers weights in them) run, and so they do when a checkpoint computes
    the logits again.
    """
    hidden = hidden[None]
    view = object.__new__(type(model))
    view.__dict__ = model.__dict__ | {"_modules": model._modules | {model.base_model_prefix: GivenBackbone(hidden)}}
    # Of the class, not of the instance: one that was replaced on the instance is bound to the whole model.
    output = type(model).forward(view, inputs_embeds=hidden)
    logits: Tensor = output[0] if isinstance(output, tuple) else output.logits
    return logits[0]

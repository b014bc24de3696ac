"""Weights as a model's checkpoint names and cuts them, which is how engines read them.

transformers keeps some weights under other names than the checkpoint does, or several in one tensor: the experts of a layer, of
which a checkpoint has a tensor each. It undoes this when it saves, and so does a learner that sends its weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from dvpo_ray.types import TensorSpec


class StoredNames:
    """Which parameters of a model make which tensors of its checkpoint.

    Parameters that are converted together (queries, keys and values of one fused layer) are found by the name that
    transformers gives them when it saves; the others make their tensors by themselves.
    """

    def __init__(self, model: Any, parameters: Mapping[str, Tensor], adapters: bool = False) -> None:
        """``parameters`` of the model by their names in memory, of their whole shapes (``meta`` tensors will do). ``adapters``
        have no other names."""
        self._model = model
        self._converted = bool(_conversions(model)) and not adapters
        self._sources: dict[str, tuple[str, ...]] = {}
        self.specs: list[TensorSpec] = []
        for names in _groups(model, parameters) if self._converted else [(name,) for name in parameters]:
            wholes = {name: parameters[name].detach().to("meta") for name in names}
            for name, tensor in self.stored(wholes).items():
                self._sources[name] = names
                self.specs.append(TensorSpec.of(name, tensor))

    def sources(self, specs: Iterable[TensorSpec]) -> list[str]:
        """Names in memory of the parameters that these tensors are made of, each once."""
        return list(dict.fromkeys(source for spec in specs for source in self._sources[spec.name]))

    def stored(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the checkpoint, by its names, that whole parameters make; views where it can be."""
        from transformers.core_model_loading import revert_weight_conversion

        given = {name: parameter.detach() for name, parameter in parameters.items()}
        return dict(revert_weight_conversion(self._model, given)) if self._converted else given


def _conversions(model: Any) -> list[Any]:
    """What transformers did to a checkpoint's tensors when it loaded this model."""
    return list(getattr(model, "_weight_conversions", None) or ())


def _groups(model: Any, names: Iterable[str]) -> list[tuple[str, ...]]:
    """Names in memory, in their order, those together that are saved by one conversion."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    undone = [conversion.reverse_transform() for conversion in reversed(_conversions(model))]
    renamings = [one for one in undone if isinstance(one, WeightRenaming)]
    converters = [one for one in undone if isinstance(one, WeightConverter)]
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[rename_source_key(name, renamings, converters, reverse=True)[0]].append(name)
    return [tuple(group) for group in found.values()]

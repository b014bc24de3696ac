"""Models of the Hugging Face Hub: by name, each at one commit, from the Hub's own cache when it is there.

``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` are heeded as by every tool of the Hub.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dvpo_ray.errors import ModelError
from dvpo_ray.io.secrets import masked

Tell = Callable[[str], None]
MAIN = "main"
NAMED = re.compile(r"(?P<name>(?:[\w-][\w.-]{0,95}/)?[\w-][\w.-]{0,95})(?:@(?P<revision>[\w.-][\w./-]{0,95}))?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
# `*` stands for folders too: a model is in the first one, with its code and templates below.
FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py")
# The same weights in another form: below folders (original, metal, onnx), Mistral's own, and variants (model.fp16.safetensors).
DUPLICATES = (
    "*/*.safetensors",
    "*/*.json",
    "*/*.model",
    "*/*.tiktoken",
    "*/*.txt",
    "consolidated*.safetensors",
    "model.?*.safetensors",
)
ANSWER_S = 20.0


@dataclass(frozen=True)
class HubModel:
    """A model of the Hub at a branch, tag or commit. Example: ``HubModel("org/name", "v1")`` is written ``org/name@v1``."""

    name: str
    revision: str = MAIN

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}"

    @property
    def is_pinned(self) -> bool:
        """Whether its revision is a commit, which does not move."""
        return COMMIT.fullmatch(self.revision) is not None

    def pinned(self, tell: Tell, field: str) -> HubModel:
        """The model at the commit that its revision stands for now; where the Hub cannot be reached, the one that it last stood
        for here, and ``tell`` is told. ``field`` is the setting that names the model.

        Raises:
            ModelError: there is no such model or revision, or it is neither reached nor known here.
        """
        if self.is_pinned:
            return self
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RevisionResolutionError

        hub = HfApi()
        try:
            # Whether it answers at all: the second call would take what it knew earlier, and say nothing.
            hub.model_info(self.name, revision=self.revision, timeout=ANSWER_S)
            return replace(self, revision=hub.resolve_revision(self.name, revision=self.revision).resolved)
        except Exception as error:
            if not _is_unreachable(error):
                raise ModelError(_explained(self, error, field)) from error
            try:
                known = hub.resolve_revision(self.name, revision=self.revision, local_files_only=True).resolved
            except RevisionResolutionError:
                raise ModelError(_explained(self, error, field)) from error
            tell(
                f"the Hub cannot be reached ({_said(error)}): '{self.name}' is taken from the cache, at the commit that "
                f"'{self.revision}' stood for when it was last reached, {known}"
            )
            return replace(self, revision=known)

    def pull(self, field: str | None = None, files: Sequence[str] = FILES) -> Path:
        """The folder of a pinned model in the Hub's cache; what of ``files`` (patterns) is not there yet is pulled first.

        Without a ``field`` this is one of several machines, and another has located the model.

        Raises:
            ModelError: the Hub cannot be reached, or does not give the files.
        """
        assert self.is_pinned, f"{self}: a branch may move between processes"
        from huggingface_hub import snapshot_download

        ignored = list(DUPLICATES)
        try:
            return Path(snapshot_download(self.name, revision=self.revision, allow_patterns=list(files), ignore_patterns=ignored))
        except Exception as error:
            raise ModelError(_explained(self, error, field)) from error


def hub_model(text: str, revision: str | None = None) -> HubModel | None:
    """The model of the Hub that a setting names; None where it is the name of a folder: one that is here, or no name of the Hub.

    Raises:
        ModelError: two revisions are given.
    """
    found = NAMED.fullmatch(text)
    if found is None or ".." in text or Path(text).exists():
        return None
    if revision is not None and found["revision"] is not None:
        raise ModelError(f"'{text}' names a revision, and model.revision = '{revision}' another: leave one of them out")
    return HubModel(found["name"], revision or found["revision"] or MAIN)


def named_for_elsewhere(key: str, text: str) -> bool:
    """Whether a setting that another machine will read is taken for a name on the Hub.

    Value and reward models are made by this service, so a name of two parts is more likely that of a folder, such as
    ``runs/value``: with a revision it is the Hub's.
    """
    return (key == "model.path" or "@" in text) and hub_model(text) is not None


def _is_unreachable(error: Exception) -> bool:
    """Whether the Hub gave no answer that counts."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, HTTPError | OSError)


def _explained(model: HubModel, error: Exception, field: str | None) -> str:
    """What went wrong, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, hub = model.name, masked(constants.ENDPOINT)
    absent = f"{field} = '{name}' is no folder here, and " if field else f"'{name}' is needed on {os.uname().nodename}, and "
    match error:
        case GatedRepoError():
            return f"'{name}' is gated: accept its terms at {hub}/{name}, and set HF_TOKEN to a token of that account"
        case RevisionNotFoundError():
            return f"'{name}' has no revision '{model.revision}' at {hub}: name one of its branches, tags or commits"
        case RepositoryNotFoundError() | HFValidationError():
            return (
                f"{absent}{hub} has no model of that name: correct the name, or set HF_TOKEN to a token that may read it, if it "
                "is private"
            )
        case HfHubHTTPError() if not _is_unreachable(error):
            return f"{absent}{hub} does not give it: {_said(error)}; see {hub}/{name}, and whether HF_TOKEN is right"
    if field is None:
        return (
            f"{absent}the Hub does not give commit {model.revision} there ({_said(error)}), nor is it whole in the cache, "
            f"{constants.HF_HUB_CACHE}: let all nodes reach the Hub, or name a folder that all of them see"
        )
    at = "" if model.revision == MAIN else f" --revision {model.revision}"
    return (
        f"{absent}the Hub does not give it ({_said(error)}), nor is it whole in the cache, {constants.HF_HUB_CACHE}: on a "
        f'machine that reaches the Hub run `hf download {name}{at} --local-dir DIR`, copy DIR here, and set {field} = "DIR"'
    )


def _said(error: Exception) -> str:
    """What an error says, in one line without its full stop."""
    return masked(" ".join(f"{type(error).__name__}: {error}".split())).rstrip(".")[:300]

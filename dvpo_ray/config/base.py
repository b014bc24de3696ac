"""What every configuration section has in common: strict, frozen, documented."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from dvpo_ray.io.paths import expanded

# TOML knows neither paths nor tuples: these two read a string or a list where everything else stays strict.
PathField = Annotated[Path, Field(strict=False), AfterValidator(lambda path: Path(expanded(str(path))))]
Secret = Annotated[SecretStr, Field(strict=False)]


def _is_entry_point(value: str) -> str:
    module, _, name = value.partition(":")
    if not module or not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError("expected 'package.module:function'")
    return value


class Mark(Enum):
    """What the rest of the project does with a setting: a field that bears a mark needs no other mention.

    Submission, manifests and resumed runs find marked fields by walking the sections (``config.references``).
    """

    DATA = "rows are read from here: goes with a job, or must be seen by the cluster"
    MODEL = "a model's folder or name: must be seen by every machine"
    FUNCTION = "a Python function of the user's own: its module goes with a job, or is installed"
    WRITTEN = "a place outside the run's folder that a run writes to"
    FIXED = "stays as it was when a run is resumed"


# The name of a file, a folder, or something that has no path; `~` and `$VAR` are filled in.
Place = Annotated[str, Field(min_length=1), AfterValidator(expanded)]
EntryPoint = Annotated[str, AfterValidator(_is_entry_point)]
DataSource = Annotated[Place, Mark.DATA]
ModelFolder = Annotated[Place, Mark.MODEL]
PythonFunction = Annotated[EntryPoint, Mark.FUNCTION]
WrittenPlace = Annotated[str, Mark.WRITTEN]
T = TypeVar("T")
FixedOnResume = Annotated[T, Mark.FIXED]


class Section(BaseModel):
    """A group of settings. Unknown keys are errors and values never change after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )

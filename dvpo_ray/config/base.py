"""What every configuration section has in common: strict, frozen, documented."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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


# The name of a file, a folder, or something that has no path; `~` and `$VAR` are filled in.
Place = Annotated[str, Field(min_length=1), AfterValidator(expanded)]
EntryPoint = Annotated[str, AfterValidator(_is_entry_point)]


class Section(BaseModel):
    """A group of settings. Unknown keys are errors and values never change after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )

"""What every configuration section has in common: strict, frozen, documented."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SecretStr,
)
from pydantic_core import CoreSchema, core_schema

from dvpo_ray.errors import ConfigError
from dvpo_ray.io.paths import expanded, refuse_url
from dvpo_ray.metrics import Figure, Metric, declare
from dvpo_ray.registry import Registry, load_entry_point


# TOML knows neither paths nor tuples: these two read a string or a list where everything else stays strict.
def _local_path(path: Path) -> Path:
    found = expanded(str(path))
    refuse_url(found)
    return Path(found)


PathField = Annotated[Path, Field(strict=False), AfterValidator(_local_path)]
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

    # What runs with these settings record besides the metrics of all runs.
    METRICS: ClassVar[tuple[Metric | Figure, ...]] = ()

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        declare(*cls.METRICS)


def kind_of(default: str) -> Discriminator:
    """Chooses a union's member by its `type`, which may be left out for the default kind."""

    def tag(value: Any) -> str:
        found = value.get("type", default) if isinstance(value, dict) else getattr(value, "type", default)
        return str(found)

    return Discriminator(tag)


class Choice(Section):
    """Settings of a part that a recipe chooses by ``type``: the base class of each kind owns a ``registry``, and a field of that
    class takes the settings of any part of the kind. What does the work is built from them.
    """

    registry: ClassVar[Registry]
    # The place of what ``build`` calls with these settings, as ``package.module:Class``.
    implementation: ClassVar[str] = ""

    type: FixedOnResume[str] = Field("", description="Selects this kind.")

    def build(self, *given: Any) -> Any:
        """What does the work by these settings.

        Raises:
            ConfigError: it cannot be imported.
        """
        if not self.implementation:
            raise ConfigError(
                f"{type(self).__module__}.{type(self).__qualname__} does not say what it builds: set "
                "implementation = 'package.module:Class'"
            )
        return load_entry_point(self.implementation)(self, *given)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if "registry" not in cls.__dict__:
            return handler(source)
        return core_schema.no_info_plain_validator_function(cls._chosen)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        if "registry" not in cls.__dict__:
            return handler(schema)
        return {"anyOf": [handler(one.__pydantic_core_schema__) for one in cls.registry.classes()]}  # type: ignore[attr-defined]

    @classmethod
    def _chosen(cls, value: Any) -> Self:
        """The settings of the part that ``type`` names."""
        if isinstance(value, cls):
            return value._called(value.type)
        if not isinstance(value, Mapping):
            raise ValueError(f"expected a table of settings with a `type`, got {type(value).__name__}")
        name = value.get("type", cls.registry.default)
        if not isinstance(name, str):
            raise ValueError(f"`type` is a text, got {name!r}")
        try:
            kind, given = cls.registry.find(name)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if not (isinstance(kind, type) and issubclass(kind, cls)):
            raise ValueError(
                f"type = '{name}' is no {cls.registry.what}: a class derived from {cls.__module__}.{cls.__name__} is"
            )
        twice = [key for key in given if key in value and value[key] != given[key]]
        if twice:
            raise ValueError(f"`{twice[0]}` is given by type = '{name}', which stands for {dict(given)}: leave it out")
        settings = kind.model_validate({key: one for key, one in value.items() if key != "type"} | dict(given))
        return settings if given else settings._called(name)

    def _called(self, name: str) -> Self:
        """With the ``type`` by which every process finds this class, which goes by ``name`` in this one."""
        found = self.registry.name_of(type(self), name)
        return self if found == self.type else self.model_copy(update={"type": found})

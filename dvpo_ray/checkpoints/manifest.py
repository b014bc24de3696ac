"""The manifest of a checkpoint: what was trained, the driver's state, the sha256 of every file, and proof that nothing changed.

The manifest holds a sha256 of itself, and with a key in ``DVPO_CHECKPOINT_KEY`` an HMAC as well: the one shows damage, the other
intent.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dvpo_ray.errors import CheckpointError, DamagedCheckpointError
from dvpo_ray.io.json_files import parse_object

KEY_VARIABLE = "DVPO_CHECKPOINT_KEY"
FORMAT = 2
LARGEST = 64 * 2**20
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,199}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """What ``manifest.json`` records. Names of files are plain, so they lie in the checkpoint's folder."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: int
    step: int = Field(ge=0, lt=2**53)
    state: dict[str, Any]
    files: dict[FileName, Sha256]
    sha256: Sha256
    signature: str = ""


def manifest_text(step: int, files: Mapping[str, str], state: Mapping[str, Any], key: bytes) -> str:
    """The manifest of a checkpoint as JSON, signed when there is a key."""
    content: dict[str, Any] = {"format": FORMAT, "step": step, "state": dict(state), "files": dict(files)}
    content["sha256"] = _digest(content)
    if key:
        content["signature"] = _signature(content, key)
    return json.dumps(content, indent=1) + "\n"


def read_manifest(data: bytes, where: str, key: bytes) -> Manifest:
    """Check the form, the signature and the digest of a manifest; ``where`` names its checkpoint in errors.

    Raises:
        DamagedCheckpointError: it is not what was written, naming the field.
        CheckpointError: it was not signed with the key, or is of another format.
    """
    try:
        content = parse_object(data)
    except (ValueError, TypeError) as error:
        raise DamagedCheckpointError(f"{where} has no usable manifest: {error}") from error
    form = content.get("format")
    if type(form) is int and form != FORMAT:
        raise CheckpointError(
            f"{where} has format {form!s:.20}, this version reads {FORMAT}: go on with the version that wrote it"
        )
    if key and not _is_signed(content, key):
        raise CheckpointError(f"{where} is not signed with the key in {KEY_VARIABLE}")
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part)[:80] for part in first["loc"])
        raise DamagedCheckpointError(f"{where} has no usable manifest: {field!a}: {first['msg']}") from error
    if manifest.sha256 != _digest(content):
        raise DamagedCheckpointError(f"{where} has a manifest that was altered: its sha256 is not the one it names")
    return manifest


def _is_signed(content: Mapping[str, Any], key: bytes) -> bool:
    signature = content.get("signature")
    return isinstance(signature, str) and hmac.compare_digest(
        signature.encode(errors="replace"), _signature(content, key).encode()
    )


def _signature(content: Mapping[str, Any], key: bytes) -> str:
    return hmac.new(key, _bytes(content, ("signature",)), hashlib.sha256).hexdigest()


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_bytes(content, ("signature", "sha256"))).hexdigest()


def _bytes(content: Mapping[str, Any], without: tuple[str, ...]) -> bytes:
    return json.dumps({name: part for name, part in content.items() if name not in without}, sort_keys=True).encode()

"""Model folders on disk: written whole or not at all, with a sha256 of every file."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dvpo_ray.errors import DataError, ModelError
from dvpo_ray.io.disk import writing
from dvpo_ray.io.json_files import read_object

MANIFEST = "manifest.json"
ADAPTER = "adapter_config.json"
GENERATION = "generation_config.json"
# Where tokenizers with several chat templates keep all but the default.
TEMPLATES = "additional_chat_templates"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flush_file(path: Path) -> None:
    """Flush what was written to a file to the disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def hash_files(folder: Path, exclude: tuple[str, ...] = ()) -> dict[str, str]:
    """sha256 of every file directly in ``folder``, by name, and of chat templates in their own sub-folder, by their path."""
    files = {path.relative_to(folder).as_posix(): path for path in (*folder.iterdir(), *folder.glob(f"{TEMPLATES}/*"))}
    return {name: sha256_file(path) for name, path in sorted(files.items()) if path.is_file() and name not in exclude}


def weights_sha256(folder: Path) -> str:
    """One digest over names and bytes of a folder's safetensors files."""
    files = sorted(folder.glob("*.safetensors"))
    with ThreadPoolExecutor() as threads:
        digests = list(threads.map(sha256_file, files))
    lines = "".join(f"{file.name}={digest};" for file, digest in zip(files, digests, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a model is loaded from; a folder may have the same weights in another form beside them.

    Raises:
        ModelError: the index cannot be read.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return sorted({folder / shard for shard in _weight_map(folder / INDEX).values()})
    return sorted(folder.glob("*.safetensors"))


def tensor_files(folder: Path) -> dict[str, Path]:
    """Which safetensors file of a folder holds which tensor."""
    found: dict[str, Path] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def check_files(folder: Path, expected: dict[str, str], manifest: str) -> None:
    """Compare a folder with the hashes its manifest names.

    Raises:
        ModelError: naming the first file that is missing, altered, or outside the folder.
    """
    for name, digest in expected.items():
        if not all(map(_is_plain, name.split("/"))):
            raise ModelError(f"{folder / manifest}: '{name}' points outside the folder or names no file; it is not trusted")
        file = folder / name
        if not file.is_file():
            raise ModelError(f"{file} is missing although {manifest} names it; copy the whole folder again")
        found = sha256_file(file)
        if found != digest:
            raise ModelError(
                f"{file} was altered: sha256 {found[:16]}..., {manifest} says {digest[:16]}...; copy the folder again or retrain"
            )


def check_weights(folder: Path) -> None:
    """Refuse weights that are no safetensors, whatever their name, or that would be taken from outside the folder.

    Raises:
        ModelError: naming the file.
    """
    if (folder / ADAPTER).exists():
        raise ModelError(f"'{folder}' holds {ADAPTER}, which changes the model or names another one: merge the adapters first")
    for index in sorted(folder.glob("*.index.json")):
        shards = set(_weight_map(index).values())
        absent = sorted(name for name in shards if name.endswith(".safetensors") and not (folder / name).is_file())
        if absent:
            raise ModelError(f"{folder / absent[0]} is missing although {index.name} names it; copy the whole folder again")
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{file} is no safetensors file ({error}): it was not loaded; save it with save_pretrained"
            ) from error


def _weight_map(index: Path) -> dict[str, str]:
    """Which file holds which tensor, as an index says."""
    try:
        shards = read_object(index).get("weight_map")
    except DataError as error:
        raise ModelError(str(error)) from error
    if not isinstance(shards, dict) or not all(isinstance(name, str) and _is_plain(name) for name in shards.values()):
        raise ModelError(f"{index}: weight_map points outside the folder or names no files; it is not trusted")
    return shards


def _is_plain(name: str) -> bool:
    """Whether a name is one of a file directly in a folder, and not too long for one."""
    return Path(name).name == name not in ("", "..") and len(name.encode(errors="replace")) <= 255


@contextmanager
def written_atomically(target: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``target`` and rename it into place when the block succeeds.

    Every file is fsynced before the rename; after a failure the temporary folder is removed and ``target`` is untouched.

    Raises:
        DiskFullError: there is no room.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # As open as the umask lets any new folder be; those of `tempfile` are for their owner alone.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    temporary.mkdir()
    try:
        with writing(target):
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    flush_file(file)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_savable(folder: Path, config: Any, tokenizer: Any) -> None:
    """Try what could fail when a model that was trained from ``folder`` is saved: its tokenizer and its configurations.

    Raises:
        ModelError: with what transformers says.
    """
    from transformers import GenerationConfig

    with tempfile.TemporaryDirectory() as temporary:
        try:
            tokenizer.save_pretrained(temporary)
            config.save_pretrained(temporary)
            if (folder / GENERATION).is_file():
                GenerationConfig.from_pretrained(folder).save_pretrained(temporary)
        except Exception as error:
            raise ModelError(
                f"model folder '{folder}' could be trained but not saved again ({type(error).__name__}: {error}); nothing was "
                "started; mend its tokenizer_config.json, config.json or generation_config.json"
            ) from error


def write_manifest(folder: Path, content: dict[str, object]) -> None:
    """Write ``manifest.json`` with ``content`` and the sha256 of every other file."""
    (folder / MANIFEST).write_text(json.dumps(content | {"files": hash_files(folder)}, indent=2) + "\n")


def check_model_folder(path: str | Path) -> Path:
    """A folder that looks like a Hugging Face model, verified against its manifest when it has one.

    Raises:
        ModelError: naming what is missing.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelError(f"model folder '{folder}' does not exist; give a folder with config.json, safetensors and tokenizer")
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    if not list(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise ModelError(f"model folder '{folder}' lacks {', '.join(missing)}; save it with save_pretrained")
    manifest = folder / MANIFEST
    if manifest.is_file():
        check_files(folder, _manifest_files(manifest), MANIFEST)
    check_weights(folder)
    return folder


def _manifest_files(manifest: Path) -> dict[str, str]:
    try:
        files = read_object(manifest).get("files", {})
    except DataError as error:
        raise ModelError(str(error)) from error
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise ModelError(f"{manifest}: files: expected names with their sha256; copy the whole folder again")
    return files

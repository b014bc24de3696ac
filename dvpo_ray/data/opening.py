"""Files opened by what they hold, not by what they are called: unpacked, and text as UTF-8 without a byte-order mark."""

from __future__ import annotations

import codecs
import gzip
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dvpo_ray.errors import DataError

MAX_LINE = 64 * 2**20
HEAD = 512
GZIP = b"\x1f\x8b"
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    # Before that of UTF-16, which is its beginning.
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
FOREIGN = (
    (
        rb"version https://git-lfs\.github\.com/spec/v1",
        "is a Git LFS pointer, not the data it stands for: `git lfs pull` in its repository fetches that",
    ),
    (rb"\x1f\x8b", "holds gzip that is to be unpacked first: run `gunzip`"),
    (rb"\x28\xb5\x2f\xfd", "is packed by zstd: unpack it by `zstd -d`"),
    (rb"BZh[1-9]1AY&SY", "is packed by bzip2: unpack it by `bunzip2`"),
    (rb"\xfd7zXZ\0", "is packed by xz: unpack it by `unxz`"),
    (rb"PK\x03\x04", "is a zip archive or a spreadsheet: unpack it, or save its sheet as .csv"),
    (rb"ARROW1\0\0", "is an Arrow file: save it as .parquet, or give the folder that `save_to_disk` wrote"),
    (rb"(?i)\s*<(?:!doctype html|html)\b", "is a web page, not the data it shows: download the file itself"),
    (rb"[ -~]\0[ -~]\0", "is UTF-16 without a byte-order mark: convert it by `iconv -f UTF-16LE -t UTF-8`"),
    (rb"\0[ -~]\0[ -~]", "is UTF-16 without a byte-order mark: convert it by `iconv -f UTF-16BE -t UTF-8`"),
)


def head_of(path: Path) -> bytes:
    """The first bytes of a file, as they lie there."""
    with path.open("rb") as stream:
        return stream.read(HEAD)


def refuse_foreign(head: bytes, path: Path) -> None:
    """Refuse what is known by its first bytes not to be data.

    Raises:
        DataError: naming what it is and the remedy.
    """
    for pattern, remedy in FOREIGN:
        if re.match(pattern, head):
            raise DataError(f"{path} {remedy}")


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """A file's text as UTF-8.

    Raises:
        DataError: it is known not to hold text.
    """
    with path.open("rb") as file:
        packed = file.read(len(GZIP)) == GZIP
        file.seek(0)
        stream: io.BufferedIOBase = gzip.GzipFile(fileobj=file) if packed else file
        head = stream.read(HEAD)
        refuse_foreign(head, path)
        mark, encoding = next((entry for entry in MARKS if head.startswith(entry[0])), (b"", "utf-8"))
        if path.suffix.lower() == ".gz" and not packed and not mark and not _is_text(head):
            raise DataError(f"{path}: damaged from its first byte on: neither gzip nor text; copy or download it again")
        stream.seek(len(mark))
        yield stream if encoding == "utf-8" else io.BufferedReader(_AsUtf8(stream, encoding))


def lines(stream: io.BufferedIOBase) -> Iterator[bytes | None]:
    """Lines, or None for one that is too long to be held: a few kilobytes of gzip can be gigabytes of one line."""
    while line := stream.readline(MAX_LINE + 1):
        if len(line) <= MAX_LINE or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE + 1)
        yield None


class _AsUtf8(io.RawIOBase):
    """Text of another encoding as UTF-8. Half of a surrogate pair stays one, which no UTF-8 may hold: its row will be refused."""

    def __init__(self, stream: io.BufferedIOBase, encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        self._left = b""

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer as far as there is text at hand; 0 at the end."""
        while not self._left:
            data = self._stream.read(2**16)
            self._left = self._decoder.decode(data, final=not data).encode("utf-8", "surrogatepass")
            if not data:
                break
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def _is_text(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return b"\0" not in head

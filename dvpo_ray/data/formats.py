"""What one row is: its ids, and what it holds when its shape is looked for in the row alone (see ``shapes``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dvpo_ray.data.messages import Messages
from dvpo_ray.data.reasons import BadRow, Reason
from dvpo_ray.data.shapes import pairs_in, prompts_in, recognise

# A row's own id, and ids that rows of one prompt or conversation share.
ID_FIELDS = ("id", "row_id", "uid")
SHARED_ID_FIELDS = ("prompt_id", "question_id", "conversation_id", "message_tree_id")
GROUP = "group"


def own_id(row: Mapping[str, Any]) -> str | None:
    """The row's own id; None when it has none.

    Raises:
        BadRow: the id is a list or an object.
    """
    return _id(row, ID_FIELDS)


def row_id(row: Mapping[str, Any], fallback: str) -> str:
    """The row's own id, else one that it may share with others, else ``fallback``.

    Raises:
        BadRow: the id is a list or an object.
    """
    return own_id(row) or _id(row, SHARED_ID_FIELDS) or fallback


def _id(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    for name in names:
        found = row.get(name)
        if isinstance(found, Mapping | list | tuple):
            raise BadRow(Reason.WRONG_TYPE, f"'{name}' is a {type(found).__name__}, expected text or a number")
        # Tables say NaN where there is nothing.
        if found is not None and found == found and str(found).strip():
            return str(found)
    return None


def row_group(row: Mapping[str, Any]) -> str | None:
    """What a row has in common with others, such as the subject of its prompt (``group``); None when it does not say.

    Raises:
        BadRow: it is a list or an object.
    """
    return _id(row, (GROUP,))


def parse_pair(row: Mapping[str, Any]) -> tuple[Messages, str, str]:
    """Prompt, chosen and rejected answer of a preference row: the first, if it holds several.

    Raises:
        BadRow: with the reason.
    """
    found = recognise([row], "pairs").rows(row)[0]
    ((chosen, rejected), *_) = pairs_in(found)
    return found.prompt, chosen, rejected


def parse_prompt(row: Mapping[str, Any]) -> Messages:
    """The prompt of a row.

    Raises:
        BadRow: with the reason.
    """
    return prompts_in(row, recognise([row], "prompts"))[0].prompt

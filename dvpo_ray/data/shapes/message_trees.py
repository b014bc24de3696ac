"""Conversations of Open Assistant: trees of messages, in one row each or in a row for each message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from dvpo_ray.data.messages import Message, Messages, checked_answer, prompt_of, text_of
from dvpo_ray.data.raw_rows import RawRow
from dvpo_ray.data.reasons import BadRow, Reason
from dvpo_ray.data.shapes.base import Answer, Assembly, Prompted, Row, has, number, shape

COLUMNS = ("message_id", "parent_id", "message_tree_id", "text", "role", "rank", "deleted", "review_result")
DELETED = "messages that were deleted"
REFUSED = "messages that a review refused"
FOLLOWING = "messages that follow from those"
UNRANKED = "answers without a rank"


def _is_tree(row: Row) -> bool:
    return isinstance(row.get("prompt"), Mapping) and isinstance(row["prompt"].get("replies"), list | tuple)


def _is_message(row: Row) -> bool:
    return has(row, "message_id", "text", "role") and "parent_id" in row


def assembled(rows: Iterable[RawRow], notes: Counter[str]) -> Iterator[RawRow]:
    """Trees of single messages, once all are read, in the order of their first messages; other rows as they are.

    A message that belongs to no tree, because one above it is not there, or whose id was there before, gets a problem. ``notes``
    counts messages that will be left out of their trees.
    """
    messages: dict[str, RawRow] = {}
    for raw in rows:
        # The first message of a tree may lack the column `parent_id`, as in Open Assistant's own exports.
        if raw.row is None or not has(raw.row, "message_id", "text", "role"):
            yield raw
            continue
        name = str(raw.row["message_id"])
        if _is_none(raw.row["message_id"]):
            yield replace(raw, problem=Reason.MISSING_FIELD, detail="'message_id' is empty")
        elif name in messages:
            yield replace(raw, problem=Reason.DUPLICATE_ID, detail=f"an earlier message has the message_id '{name}'")
        else:
            messages[name] = raw
    replies: dict[str, list[str]] = {}
    for name, raw in messages.items():
        replies.setdefault(_parent(raw), []).append(name)
    for root in replies.get("", ()):
        names = _below(root, replies)
        yield from counted([_tree_of(names, [messages.pop(name) for name in names])], notes)
    for raw in messages.values():
        detail = f"the message above it (parent_id '{_parent(raw)}'), or one further up, is not there"
        yield replace(raw, problem=Reason.NO_PARENT, detail=detail)


def counted(rows: Iterable[RawRow], notes: Counter[str]) -> Iterator[RawRow]:
    """Rows as they are; ``notes`` counts the messages of trees that will be left out."""
    for raw in rows:
        if raw.row is not None and _is_tree(raw.row):
            _count_left_out(raw.row["prompt"], notes)
        yield raw


def _count_left_out(root: Row, notes: Counter[str]) -> None:
    """Count what a tree is read without; one without a beginning is not read at all."""
    if _left_out(root):
        return
    nodes: list[tuple[Row, bool]] = [(root, False)]
    for node, follows in nodes:
        why = FOLLOWING if follows else _left_out(node)
        if why or (node is not root and _role(node) == "assistant" and _is_none(node.get("rank"))):
            notes[why or UNRANKED] += 1
        nodes += [(reply, bool(why)) for reply in node.get("replies") or () if isinstance(reply, Mapping)]


def _parent(raw: RawRow) -> str:
    """The id of the message that this one answers; empty for the first of its tree."""
    parent = (raw.row or {}).get("parent_id")
    return "" if _is_none(parent) else str(parent)


def _below(root: str, replies: Mapping[str, list[str]]) -> list[str]:
    """A message and all that follow from it, each after the one that it answers."""
    found = [root]
    for name in found:
        found += replies.get(name, ())
    return found


def _tree_of(names: list[str], parts: list[RawRow]) -> RawRow:
    nodes: dict[str, dict[str, Any]] = {}
    for name, raw in zip(names, parts, strict=True):
        assert raw.row is not None
        node = {key: raw.row.get(key) for key in ("text", "role", "rank", "deleted", "review_result")} | {"replies": []}
        if _is_none(node["rank"]):
            node["rank"] = None
        nodes[name] = node
        if name != names[0]:
            nodes[_parent(raw)]["replies"].append(node)
    first = parts[0].row or {}
    tree = {"message_tree_id": first.get("message_tree_id") or names[0], "prompt": nodes[names[0]]}
    return replace(parts[0], row=tree, parts=tuple(parts))


def _is_none(value: Any) -> bool:
    """Tables say NaN where there is nothing."""
    return value is None or value != value or value == ""


def _left_out(node: Row) -> str | None:
    """Why a message, with all that follow from it, has no part in its tree."""
    if str(node.get("deleted") or False).lower() == "true":
        return DELETED
    return REFUSED if str(node.get("review_result")).lower() == "false" else None


def _role(node: Row, above: Messages = (Message("user", ""),)) -> str:
    return {"prompter": "user"}.get(str(node.get("role")), str(node.get("role") or ("" if above else "user")))


@shape(
    "open_assistant_tree",
    "`prompt` with `replies`, and theirs: trees of Open Assistant",
    _is_tree,
    own_prompts=True,
    assembly=Assembly(("message_tree_id", "prompt"), counted),
)
@shape(
    "open_assistant_messages",
    "`message_id`, `parent_id`, `text`, `role`, `rank`: messages of Open Assistant, put together into trees first",
    _is_message,
    own_prompts=True,
    assembly=Assembly(COLUMNS, assembled),
)
def _tree(row: Row) -> Iterator[Prompted]:
    if not _is_tree(row):
        raise BadRow(Reason.MISSING_FIELD, "neither a tree of messages ('prompt' with 'replies') nor a message of one")
    left_out = _left_out(row["prompt"])
    if left_out:
        raise BadRow(Reason.MISSING_FIELD, f"the tree has no beginning, which is one of the {left_out}")
    found = list(_replies(row["prompt"], ()))
    if not found:
        raise BadRow(Reason.MISSING_FIELD, "the tree has no turn with several ranked answers")
    yield from found


def _replies(node: Row, before: Messages) -> Iterator[Prompted]:
    said = [(before, node)]
    while said:
        above, one = said.pop()
        role = _role(one, above)
        talk = (*above, Message(role, text_of(one.get("text"), "text")))
        replies = [reply for reply in one.get("replies") or () if isinstance(reply, Mapping) and not _left_out(reply)]
        ranked = [reply for reply in replies if not _is_none(reply.get("rank"))]
        if role == "user" and len(ranked) > 1:
            prompt = prompt_of([m.turn for m in talk], "prompt")
            yield Prompted(
                prompt,
                tuple(Answer(checked_answer(text_of(r.get("text"), "text"), "text"), -number(r["rank"], "rank")) for r in ranked),
            )
        said += [(talk, reply) for reply in reversed(replies)]

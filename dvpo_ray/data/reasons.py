"""Why a row cannot be used."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Codes written to the dead-letter file."""

    INVALID_JSON = "invalid_json"
    BAD_UTF8 = "bad_utf8"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    EMPTY_PROMPT = "empty_prompt"
    EMPTY_ANSWER = "empty_answer"
    EQUAL_ANSWERS = "equal_answers"
    BAD_TRANSCRIPT = "bad_transcript"
    BAD_CONVERSATION = "bad_conversation"
    CONTROL_WORD = "control_word"
    TIE = "tie"
    NO_PARTNER = "no_partner"
    LOW_SCORE = "low_score"
    OUT_OF_SCALE = "out_of_scale"
    NO_PARENT = "no_parent"
    TOO_LONG = "too_long"
    DUPLICATE_ID = "duplicate_id"
    UNKNOWN_TOKEN = "unknown_token"


class BadRow(ValueError):
    """A row that goes to the dead letters."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

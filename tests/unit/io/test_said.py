"""Errors in words, which sentence asks for which change, and which failures come again."""

from __future__ import annotations

import pickle

import pytest
from pydantic import BaseModel, ValidationError

from actors.cluster.failure_kinds import FailureKind, failure_kind, failure_kind_of_text, sentence
from dvpo_ray import errors
from dvpo_ray.errors import ActorFailedError, DvpoError, PermanentFailureError, RaisedError, RowDeadlineError
from dvpo_ray.io.error_text import MOST_FRAMES, MOST_TEXT, Said, said_of
from dvpo_ray.io.remedies import remedy
from tests.support.failing import NoText, fail


def caught(how: str) -> Exception:
    with pytest.raises(Exception) as raised:
        fail(how)
    return raised.value


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("needs more", "NeedsMore: 1 layers, expected 2"),
        ("holds lock", "HoldsLock: the lock is mine"),
        ("no pickle", "NoPickle: never to be sent"),
        ("no text", "NoText: (a text that fails with KeyError)"),
        ("chain", "ValueError: no such layer (from KeyError: 'layer')"),
        ("index", "IndexError: list index out of range"),
    ],
)
def test_an_exception_is_told_by_type_text_and_place(how: str, text: str) -> None:
    said = said_of(caught(how))
    assert said.text == text
    assert said.frames[0].endswith(" in fail") and "tests/support/failing.py:" in said.frames[0]
    assert pickle.loads(pickle.dumps(said)) == said


def test_a_huge_text_is_cut() -> None:
    said = said_of(caught("huge"))
    assert len(said.text) == MOST_TEXT and said.text.startswith("ValueError: xxx") and said.text.endswith("...")


def test_only_the_innermost_frames_are_told() -> None:
    def deep(left: int) -> None:
        return deep(left - 1) if left else fail("index")

    with pytest.raises(IndexError) as raised:
        deep(10)
    assert [frame.rpartition(" ")[2] for frame in said_of(raised.value).frames] == ["fail", *["deep"] * (MOST_FRAMES - 1)]


def test_of_pydantics_errors_the_sentences_are_told_and_not_the_values() -> None:
    class Engine(BaseModel):
        length: int
        dtype: str

    with pytest.raises(ValidationError) as raised:
        Engine(length="a secret", dtype="x" * 10**5)  # type: ignore[arg-type]
    assert said_of(raised.value).text == (
        "ValidationError of Engine: length: Input should be a valid integer, unable to parse string as an integer"
    )


def test_what_to_change_stands_after_the_text() -> None:
    said = Said("ValueError: User-specified max_model_len (9) is greater than the derived max_model_len (x=8)", ("a.py:1 in f",))
    text, mend, where = said.explained.splitlines()
    assert text == said.text and where == "  at a.py:1 in f"
    assert mend.startswith("  to mend it: lower rollout.engine.max_model_len")
    assert (
        str(Said("KeyError: 3", process="Worker"))
        == Said("KeyError: 3", process="Worker").explained
        == "KeyError: 3\n  in Worker"
    )


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("To serve at least one request with the model's max seq len (65536), (2.0 GiB KV cache", "rollout.engine.kv_cache_mib"),
        ("No available memory for the cache blocks. Try increasing", "gpu_memory_utilization"),
        ("Free memory on device cuda:0 (1.2/79.1 GiB) on startup is less than desired", "gpu_memory_utilization"),
        ("The decoder prompt (length 300) is longer than the maximum model length of 256.", "data.max_prompt_tokens"),
        (
            "The decoder prompt (length 256) plus the number of requested output tokens (at least 1) is longer than the maximum",
            "max_m",
        ),
        (
            "This model's maximum context length is 256 tokens. However, your prompt contains 300 input tokens",
            "max_prompt_tokens",
        ),
        ("Token id 999 is out of vocabulary", "vocab_size"),
        ("temperature must be non-negative, got -1.0.", "rollout.temperature"),
        ("Unsupported CPU attention configuration: head_dim=20", "model.path"),
        ("Model architectures ['Foo'] are not supported for now. Supported architectures: dict_keys", "docs/models.md"),
        (
            "The checkpoint you are trying to load has model type `foo` but Transformers does not recognize this architecture.",
            "path",
        ),
        ("Bfloat16 is only supported on GPUs with compute capability of at least 8.0.", "rollout.engine.dtype"),
        ("Total number of attention heads (6) must be divisible by tensor parallel size (4).", "rollout.engine.tensor_parallel"),
        ("safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata", "copy the folder again"),
        ("Exception: data did not match any variant of untagged enum ModelWrapper at line 1", "tokenizer.json"),
        ("set `trust_remote_code=True` in LLM", "model.trust_remote_code=true"),
    ],
)
def test_known_refusals_name_a_key(text: str, key: str) -> None:
    assert key in remedy(text)


def test_where_the_sentence_says_too_little_the_place_names_the_key() -> None:
    said = Said("KeyError: 'added_tokens'", ("transformers/tokenization_utils_base.py:1910 in _from_pretrained",))
    assert "to mend it: the tokenizer in model.path cannot be read" in said.explained


def test_of_unknown_sentences_nothing_is_invented() -> None:
    assert remedy("IndexError: list index out of range") == ""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (IndexError("index out of range in self"), FailureKind.PERMANENT),
        (KeyError("timeout"), FailureKind.PERMANENT),
        (TypeError("no"), FailureKind.PERMANENT),
        (NotImplementedError("no kernel"), FailureKind.PERMANENT),
        (AssertionError(), FailureKind.PERMANENT),
        (AssertionError("Error in memory profiling. Initial free memory 9 GiB, current 12 GiB"), FailureKind.TRANSIENT),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "no"), FailureKind.PERMANENT),
        (ZeroDivisionError("division by zero"), FailureKind.PERMANENT),
        (RuntimeError("Unsupported CPU attention configuration: head_dim=20"), FailureKind.PERMANENT),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)"), FailureKind.UNKNOWN),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), FailureKind.UNKNOWN),
        (FileNotFoundError(2, "No such file"), FailureKind.UNKNOWN),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), FailureKind.TRANSIENT),
        (ValueError("Free memory on device cuda:0 (1/2 GiB) on startup is less than desired"), FailureKind.TRANSIENT),
        (MemoryError(), FailureKind.TRANSIENT),
        (ConnectionResetError(104, "Connection reset by peer"), FailureKind.TRANSIENT),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3"), FailureKind.TRANSIENT),
        (OSError(28, "No space left on device"), FailureKind.TRANSIENT),
    ],
)
def test_which_failures_come_again(error: Exception, expected: FailureKind) -> None:
    assert failure_kind(error, said_of(error).text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ValueError: To serve at least one request with the model's max seq len", FailureKind.PERMANENT),
        ("vllm.exceptions.VLLMValidationError: no", FailureKind.PERMANENT),
        ("IndexError: list index out of range", FailureKind.PERMANENT),
        ("torch.AcceleratorError: CUDA error: device-side assert triggered", FailureKind.UNKNOWN),
        ("Fatal Python error: Segmentation fault", FailureKind.UNKNOWN),
        ("torch.OutOfMemoryError: CUDA out of memory.", FailureKind.TRANSIENT),
        ("Fatal Python error: Aborted (std::bad_alloc)", FailureKind.TRANSIENT),
    ],
)
def test_which_failures_of_other_processes_come_again(text: str, expected: FailureKind) -> None:
    assert failure_kind_of_text(text) is expected


def test_the_same_failure_has_the_same_sentence_whatever_its_addresses() -> None:
    assert sentence("CUDA error at 0x7f3a, process 12\n at f") == sentence("CUDA error at 0x11, process 77\n at g")
    assert sentence("CUDA error") != sentence("NCCL error")


def subclasses(kind: type[DvpoError]) -> list[type[DvpoError]]:
    return [kind, *(one for below in kind.__subclasses__() for one in subclasses(below))]


def test_every_error_of_ours_survives_a_process_border() -> None:
    made = {RowDeadlineError: ("late", "row-3"), RaisedError: ("learner-0", "KeyError: 3", True, "")}
    for kind in subclasses(errors.DvpoError):
        error = kind(*made.get(kind, ("told",)))  # type: ignore[arg-type]
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind and str(again) == str(error) and vars(again) == vars(error)
    whole = PermanentFailureError("told", True, "a sentence")
    assert vars(pickle.loads(pickle.dumps(whole))) == {"preempted": True, "sentence": "a sentence"}
    assert issubclass(PermanentFailureError, ActorFailedError) and not issubclass(
        PermanentFailureError, errors.RECOVERABLE_ERRORS
    )


def test_a_text_that_fails_is_no_failure_of_ours() -> None:
    assert said_of(NoText()).text.startswith("NoText: (")


@pytest.mark.parametrize(
    "url",
    [
        "https://user:secret@mirror/x",
        "https://token-secret@host/x",
        "https://cdn/x?X-Amz-Signature=secret&a=b",
        "s3://b/x?key=secret",
    ],
)
def test_urls_with_secrets_are_told_without_them(url: str) -> None:
    told = str(said_of(RuntimeError(f"403 for url: {url} (again)")))
    assert "secret" not in told and "://**redacted** (again)" in told
    assert "https://host:80/plain?a=b" in str(said_of(RuntimeError("see https://host:80/plain?a=b")))

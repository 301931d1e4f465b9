"""What an endpoint's JSON must look like to be read. Whatever looks otherwise is a `MalformedReply`, whose message quotes nothing of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

MOST_TOKENS = 10**9
"""More tokens than any reply has; a larger count is a mistake of the endpoint's."""


class MalformedReply(ValueError):
    """The endpoint's reply is not of the form that its protocol states."""


@dataclass(frozen=True)
class Reply:
    """An endpoint's reply.

    Attributes:
        is_cut_off: the token limit ended it.
    """

    text: str
    is_cut_off: bool
    served_by: str
    input_tokens: int
    output_tokens: int


def without_half_characters(text: Any) -> Any:
    """A text in which a question mark stands for each lone surrogate, of which JSON can spell some and UTF-8 none; else what is given."""
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else text


Text = Annotated[str, BeforeValidator(without_half_characters)]
Name = Annotated[Text, Field(max_length=200)]
Count = Annotated[int, Field(ge=0, le=MOST_TOKENS)]


class _Message(BaseModel):
    content: Text | None = None
    refusal: Text | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: Any = None


class _Usage(BaseModel):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None


class Completion(BaseModel):
    """A chat completion; of its choices the first is read, one is asked for."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None
    model: Name | None = None


class Named(BaseModel):
    """A thing that the endpoint has a name for: a model, a file."""

    id: Name = Field(min_length=1)


class Models(BaseModel):
    """The models of an endpoint."""

    data: list[Named]


class Counts(BaseModel):
    """How many requests of a batch there are, and how many are done."""

    total: Count = 0
    completed: Count = 0


class Fault(BaseModel):
    """Why a batch failed."""

    message: Text | None = None


class Faults(BaseModel):
    """All that is wrong with a batch."""

    data: list[Fault] | None = None


class Batch(Named):
    """A batch of requests."""

    status: Name
    metadata: dict[str, Any] | None = None
    output_file_id: Name | None = None
    request_counts: Counts | None = None
    errors: Faults | None = None


class Batches(BaseModel):
    """A page of an endpoint's batches, the newest first."""

    data: list[Batch]
    has_more: bool = False


class _Response(BaseModel):
    status_code: int
    body: Any = None


class _Line(BaseModel):
    custom_id: Name
    response: _Response


Form = TypeVar("Form", bound=BaseModel)


def read_form(form: type[Form], text: str | bytes) -> Form:
    """The JSON of a form that a text holds.

    Raises:
        MalformedReply: the text is no JSON, or JSON of another form.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):  # the latter where brackets are nested without end
        raise MalformedReply("no JSON") from None
    return _checked(form, body)


def read_body(text: str | bytes) -> Reply:
    """The reply in the text of a chat completion. A refusal is a text like any other.

    Raises:
        MalformedReply: the text is no JSON, or no chat completion.
    """
    return _reply(read_form(Completion, text))


def read_line(line: bytes) -> tuple[str, Reply] | None:
    """The name of a request and its reply, in a line of a batch's output; None where the request failed.

    Raises:
        MalformedReply: it is no such line, or its body no chat completion.
    """
    read = read_form(_Line, line)
    if read.response.status_code != 200:
        return None
    return read.custom_id, _reply(_checked(Completion, read.response.body))


def _checked(form: type[Form], body: Any) -> Form:
    try:
        return form.model_validate(body)
    except ValidationError as cause:
        raise MalformedReply("; ".join(_defects(cause))) from None


def _defects(cause: ValidationError) -> Iterator[str]:
    """Where a body differs from its form and how; nothing of the body itself, which may hold answers of people."""
    for defect in cause.errors(include_input=False, include_url=False, include_context=False)[:2]:
        yield f"{'.'.join(str(part) for part in defect['loc']) or 'the reply'}: {defect['msg']}"


def _reply(completion: Completion) -> Reply:
    choice, usage = completion.choices[0], completion.usage or _Usage()
    return Reply(
        text=choice.message.content or choice.message.refusal or "",
        is_cut_off=choice.finish_reason == "length",
        served_by=completion.model or "",
        input_tokens=usage.prompt_tokens or 0,
        output_tokens=usage.completion_tokens or 0,
    )

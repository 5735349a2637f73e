"""What goes over HTTP in either direction, as JSON; the OpenAPI document is made of it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

MOST_TOKENS = 1024
Name = Annotated[str, Field(min_length=1, max_length=255)]
Text = Annotated[str, Field(max_length=20_000)]
"""Far more than any of these models reads, and little enough to be cut into tokens at once."""
Names = Annotated[list[Name], Field(min_length=1, description="Each input is answered with each of these prompts.")]
TopK = Annotated[int, Field(ge=1, le=1_000_000, description="How many labels are given probabilities.")]


class ImagesAsked(BaseModel):
    """Images, and the prompts that are to label or caption them."""

    model_config = ConfigDict(extra="forbid")
    prompts: Names
    images: Annotated[list[str], Field(min_length=1, description="Image files, each as base64.")]
    top_k: TopK = 5


class TextsAsked(BaseModel):
    """Texts, and the prompts of a language model that are to answer them."""

    model_config = ConfigDict(extra="forbid")
    prompts: Names
    texts: Annotated[list[Text | dict[str, Text]], Field(min_length=1, description="Texts, or fields of a template.")]
    task: Annotated[str, Field(max_length=255, description="For prompts of several tasks.")] = ""
    top_k: TopK = 5
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS, description="Of a text that is written.")] = 64


class Said(BaseModel):
    """What one prompt says of one input: a label with probabilities, or a text."""

    prompt: str
    input: Annotated[int, Field(description="Which of the inputs, from 0.")]
    label: str | None = None
    probabilities: dict[str, float] | None = None
    text: str | None = None
    is_cut: Annotated[bool | None, Field(description="Whether the text stopped for want of room.")] = None
    is_input_cut: Annotated[bool | None, Field(description="Whether the end of a long input was not read.")] = None


class Answers(BaseModel):
    """An answer for each input and prompt: those of the first input first."""

    answers: list[Said]


class PromptFacts(BaseModel):
    """What a prompt says of itself."""

    name: str
    kind: str
    backbone: str
    template: str
    class_names: list[str] | None = None
    focus: str | None = None
    fields: list[str] | None = None
    labels: list[str] | None = None
    tasks: list[str] | None = None


class Prompts(BaseModel):
    """The prompts in use, and why others are refused."""

    prompts: list[PromptFacts]
    refused: dict[str, str]


class Health(BaseModel):
    """That it answers, and how many prompts are in use."""

    status: str
    prompts: int


class Refusal(BaseModel):
    """One line: what was wrong, what was expected, what to do."""

    detail: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "The body is no JSON."},
    401: {"model": Refusal, "description": "The API key is missing or wrong."},
    404: {"model": Refusal, "description": "There is no such prompt."},
    408: {"model": Refusal, "description": "The request took too long."},
    413: {"model": Refusal, "description": "The body is too long, or asks for too many answers."},
    422: {"model": Refusal, "description": "Something in the body is not as expected."},
    429: {"model": Refusal, "description": "Too much is waiting."},
    500: {"model": Refusal, "description": "The answer failed; the server's log says where."},
}
UNKEYED: dict[int | str, dict[str, Any]] = {401: REFUSALS[401]}

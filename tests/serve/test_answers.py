"""What comes back over HTTP is what the run says offline, however many prompts share a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import mmprompt as mp
from mmprompt.captioning import predictor as captioning
from mmprompt.serve.prompts import PromptFolder
from tests.fixtures.served_prompts import TEXTS, as_base64

IMAGE_PROMPTS = ["objects", "moods", "visual", "means", "tuned", "feelings", "places"]
TEXT_PROMPTS = ["animals", "times", "long", "answers", "stories"]
Expected = dict[str, list[dict[str, Any]]]
TOLERANCE = 1e-5
"""Of probabilities: a row of a larger batch is rounded otherwise."""


@pytest.fixture(scope="session")
def expected(prompts: PromptFolder, served_pictures: list[Path]) -> Expected:
    """What each run says of all inputs without a server, on the frozen models that are in memory."""
    found: Expected = {}
    for name, served in prompts.prompts.items():
        predictor: Any = mp.load(prompts.folder / name, prompts.models[served.kind])
        for one in predictor.predict(TEXTS if served.kind == "language" else served_pictures):
            is_label = hasattr(one, "label")
            said = {"label": one.label, **one.probabilities} if is_label else {"text": one.text}
            found.setdefault(name, []).append(said)
    return found


def flat(answer: dict[str, Any]) -> dict[str, Any]:
    return {"label": answer["label"], **answer["probabilities"]} if "label" in answer else {"text": answer["text"]}


def same(answers: list[dict[str, Any]], expected: Expected) -> None:
    for answer in answers:
        assert flat(answer) == pytest.approx(expected[answer["prompt"]][answer["input"]], abs=TOLERANCE)


def test_one_request_is_answered_by_every_prompt_as_offline(
    address: str, expected: Expected, served_pictures: list[Path]
) -> None:
    asked = {"prompts": IMAGE_PROMPTS, "images": [as_base64(path) for path in served_pictures[:3]]}
    answers = httpx.post(f"{address}/images", json=asked, timeout=30).json()["answers"]
    assert [(one["input"], one["prompt"]) for one in answers] == [(n, name) for n in range(3) for name in IMAGE_PROMPTS]
    same(answers, expected)

    asked = {"prompts": TEXT_PROMPTS, "texts": TEXTS}
    answers = httpx.post(f"{address}/texts", json=asked, timeout=30).json()["answers"]
    assert len(answers) == len(TEXT_PROMPTS) * len(TEXTS)
    same(answers, expected)


def test_a_text_whose_end_is_not_read_says_so(address: str) -> None:
    asked = {"prompts": ["times", "stories"], "texts": ["a happy dog", "dog " * 400], "max_tokens": 2}
    answers = httpx.post(f"{address}/texts", json=asked, timeout=30).json()["answers"]
    assert [one.get("is_input_cut") for one in answers] == [None, None, True, True]


def test_requests_of_many_clients_are_batched_and_each_gets_its_own(
    address: str, expected: Expected, served_pictures: list[Path]
) -> None:
    images = [as_base64(path) for path in served_pictures]

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        name = (IMAGE_PROMPTS + TEXT_PROMPTS)[number % 12]
        if name in IMAGE_PROMPTS:
            place = number % len(images)
            response = await client.post("/images", json={"prompts": [name], "images": [images[place]]})
        else:
            place = number % len(TEXTS)
            response = await client.post("/texts", json={"prompts": [name], "texts": [TEXTS[place]]})
        (answer,) = response.json()["answers"]
        same([answer | {"input": place}], expected)

    async def ask_at_once() -> None:
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            await asyncio.gather(*(ask(client, number) for number in range(72)))

    before = batches(address)
    asyncio.run(ask_at_once())
    assert batches(address) - before < 40


def batches(address: str) -> float:
    text = httpx.get(f"{address}/metrics").text
    return float(next(line for line in text.splitlines() if line.startswith("mmprompt_batch_size_count")).split()[1])


def counting(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, size: Callable[..., int]) -> list[int]:
    """Record how much each call of a method is given."""
    calls: list[int] = []
    own = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(size(*args))
        return own(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)
    return calls


def test_an_image_goes_once_through_the_image_tower_for_all_prompts(
    address: str, prompts: PromptFolder, served_pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = counting(monkeypatch, prompts.models["classification"], "encode_image", lambda images, *_: len(images))
    images = [as_base64(path) for path in served_pictures[:2]]
    asked = {"prompts": ["objects", "moods", "means"], "images": images}
    assert httpx.post(f"{address}/images", json=asked).status_code == 200
    assert seen == [2]


def test_captions_and_labels_of_several_prompts_are_one_forward(
    address: str, prompts: PromptFolder, served_pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = counting(monkeypatch, captioning, "search", lambda _, kv_cache, *__: len(kv_cache))
    asked: dict[str, Any] = {"prompts": ["feelings", "places"], "images": [as_base64(served_pictures[0])]}
    assert httpx.post(f"{address}/images", json=asked).status_code == 200
    assert searched == [2]
    read = counting(monkeypatch, prompts.models["language"], "predict", lambda _, questions, *__: len(questions))
    asked = {"prompts": ["animals", "times"], "texts": TEXTS}
    assert httpx.post(f"{address}/texts", json=asked).status_code == 200
    assert read == [2 * len(TEXTS)]


def test_one_bad_text_is_refused_and_those_beside_it_are_answered(address: str) -> None:
    async def ask_at_once() -> list[int]:
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            asked = [{"prompts": ["answers"], "texts": [text]} for text in ["dog", "dog " * 4000] * 3]
            responses = await asyncio.gather(*(client.post("/texts", json=one) for one in asked))
            return [response.status_code for response in responses]

    assert asyncio.run(ask_at_once()) == [200, 422] * 3


def test_few_labels_are_named_if_few_are_asked_for(address: str, served_pictures: list[Path]) -> None:
    asked = {"prompts": ["objects"], "images": [as_base64(served_pictures[0])], "top_k": 1}
    (answer,) = httpx.post(f"{address}/images", json=asked).json()["answers"]
    assert list(answer["probabilities"]) == [answer["label"]]

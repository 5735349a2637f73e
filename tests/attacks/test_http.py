"""Requests of strangers: those that the OpenAPI document describes and does not, and mutated ones."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from tests.attacks.guard import MOST_SECONDS, TIMES, most_kb, peak_kb, seeds, watched
from tests.attacks.mutators import mutate_bytes, mutate_json
from tests.fixtures.served_prompts import TEXTS, as_base64

load_all_checks()
HELD = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
]
"""Not among them: that whatever fits the document is taken, for not every text is an image or the name of a prompt."""
PATHS = ["/health", "/metrics", "/prompts", "/prompts/{name}", "/images", "/texts"]
EXAMPLES = hypothesis.settings(
    max_examples=20 * TIMES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["fitting", "unfitting"])
def test_the_document_says_what_is_answered(address: str, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    checks = CHECKS.get_by_names(HELD)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert sorted(one.path for one in operations) == sorted(PATHS)

    def hold(case: Any) -> None:
        case.call_and_validate(checks=checks, timeout=MOST_SECONDS)

    for operation in operations:
        try:
            EXAMPLES(hypothesis.given(operation.as_strategy(generation_mode=mode))(hold))()
        except hypothesis.errors.Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE  # nothing can be wrong where nothing is sent
            assert operation.method == "get"


def attempts(rng: random.Random, image: str) -> tuple[str, bytes]:
    """A path and a body, of a good request that was spoilt."""
    path, asked = rng.choice(
        [
            ("/images", {"prompts": ["objects", "feelings"], "images": [image], "top_k": 2}),
            ("/texts", {"prompts": ["animals", "answers"], "texts": TEXTS[:2], "task": "", "max_tokens": 4}),
        ]
    )
    if rng.random() < 0.6:
        return path, json.dumps(mutate_json(asked, rng)).encode()
    return path, mutate_bytes(json.dumps(asked).encode(), rng)


@pytest.fixture
def only_answers(tmp_path: Path) -> Iterator[None]:
    """Nothing is written or run, and nothing but this machine reached, whatever is asked."""
    most = most_kb()
    with watched(tmp_path) as seen:
        yield
    assert [one for one in seen if "127.0.0.1" not in one] == []
    assert peak_kb() < most


@pytest.mark.usefixtures("only_answers")
def test_mutated_requests(address: str, served_pictures: list[Path]) -> None:
    image, wrong = as_base64(served_pictures[0]), []
    with httpx.Client(base_url=address, timeout=MOST_SECONDS, headers={"content-type": "application/json"}) as client:
        for seed in seeds(200):
            path, body = attempts(random.Random(seed), image)
            response = client.post(path, content=body)
            content = response.json()
            is_fine = "answers" in content if response.status_code == 200 else content["detail"].isprintable()
            if response.status_code >= 500 or not is_fine:
                wrong.append((seed, response.status_code, content))
        assert client.get("/health").json() == {"status": "ok", "prompts": 12}
    assert wrong == []


TRICKS = [
    "../objects",
    "/etc/passwd",
    "....//....//etc/passwd",
    "objects/../moods",
    "objects/prompt.json",
    "\\\\host\\share",
    "C:\\Windows",
    "~root",
    "$HOME",
    "file:///etc/passwd",
    "objects\0.png",
    ".objects",
    ".",
    "..",
    "",
    "x" * 5000,
]


def test_no_name_of_a_prompt_touches_the_disk(address: str, served_pictures: list[Path]) -> None:
    opened: list[str] = []
    is_watching = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if is_watching and event in ("open", "os.listdir", "os.scandir") and arguments:
            opened.append(str(arguments[0]))

    images = [as_base64(served_pictures[0])]
    sys.addaudithook(watch)
    try:
        with httpx.Client(base_url=address, timeout=MOST_SECONDS) as client:
            for name in TRICKS:
                for path, more in (("/images", {"images": images}), ("/texts", {"texts": ["a"]})):
                    assert client.post(path, json={"prompts": [name], **more}).status_code in (404, 422)
                if name.strip("."):  # which the client itself would take for another address
                    assert client.get(f"/prompts/{quote(name, safe='')}").status_code in (404, 422)
    finally:
        is_watching = False
    names = [name for name in TRICKS if name.strip("./")]
    assert [path for path in opened if any(path.endswith(name) for name in names)] == []


@pytest.mark.usefixtures("only_answers")
def test_images_of_strangers(address: str, served_pictures: list[Path]) -> None:
    import base64

    data = served_pictures[0].read_bytes()
    with httpx.Client(base_url=address, timeout=MOST_SECONDS) as client:
        for seed in seeds(60):
            spoilt = base64.b64encode(mutate_bytes(data, random.Random(seed))).decode()
            response = client.post("/images", json={"prompts": ["objects"], "images": [spoilt]})
            assert response.status_code in (200, 422), response.text

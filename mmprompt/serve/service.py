"""What is done with a request that was read: its prompts are found, its images decoded, and its questions answered
together with those of other requests.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import HTTPException

from mmprompt.data.images import read_image
from mmprompt.errors import UserError
from mmprompt.language.data import TextRow
from mmprompt.serve.answers import Answer, Answerer, Picture, Question
from mmprompt.serve.batching import Batcher
from mmprompt.serve.limits import Limits, Metrics
from mmprompt.serve.prompts import PromptFolder, Served
from mmprompt.serve.schemas import ImagesAsked, TextsAsked

WAITING = 16
"""Full batches that may wait before a request is turned away."""


class Service:
    """The prompts of a folder, looked at again and again, and the threads that read images and compute."""

    def __init__(self, prompts: PromptFolder, limits: Limits, reload_s: float) -> None:
        self.prompts, self.limits, self.reload_s = prompts, limits, reload_s
        self.metrics = Metrics(prompts)
        self._answerer = Answerer()

    async def start(self) -> None:
        """Load the prompts and start the threads."""
        await asyncio.to_thread(self.prompts.refresh)
        self._readers = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "images")
        max_batch = self.limits.max_batch
        self._batcher = Batcher(self._answer, max_batch, WAITING * max_batch, self.metrics.batches.observe)
        self._watching = asyncio.create_task(self._look_again())

    async def stop(self) -> None:
        """Answer what waits, and end the threads."""
        self._watching.cancel()
        await self._batcher.close()
        self._readers.shutdown(cancel_futures=True)

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(self.reload_s)
            await asyncio.to_thread(self.prompts.refresh)

    def _answer(self, questions: Sequence[Question]) -> list[Answer]:
        with self.prompts.in_use:
            return self._answerer(questions)

    def find(self, names: Sequence[str]) -> list[Served]:
        """Look prompts up among those in use; no name ever becomes a path."""
        in_use = self.prompts.prompts
        for name in names:
            if name not in in_use:
                raise HTTPException(404, f"there is no prompt named {name[:60]!r}. GET /prompts lists those there are.")
        return [in_use[name] for name in dict.fromkeys(names)]

    def _find_for(self, path: str, names: Sequence[str], n_inputs: int) -> list[Served]:
        n_answers = n_inputs * len(set(names))
        if n_answers > self.limits.max_batch:
            most = f"at most {self.limits.max_batch} are given. Ask for less."
            raise HTTPException(413, f"{n_answers} answers were asked for, but {most}")
        served = self.find(names)
        for one in served:
            own = "/texts" if one.kind == "language" else "/images"
            if own != path:
                raise UserError(f"{one.name!r} is a prompt of {one.kind}, which {path} has no answer of. Ask {own}.")
        return served

    async def ask_of_images(self, asked: ImagesAsked) -> list[Answer]:
        """Label or caption images, each with each prompt."""
        served = self._find_for("/images", asked.prompts, len(asked.images))
        backbones = {one.kind: one.predictor.backbone for one in served}
        max_pixels, loop = int(self.limits.max_megapixels * 10**6), asyncio.get_running_loop()
        pictures = await asyncio.gather(
            *(
                loop.run_in_executor(self._readers, _read_picture, text, f"images[{number}]", max_pixels, backbones)
                for number, text in enumerate(asked.images)
            )
        )
        each = [Question(one, n, picture, asked.top_k) for n, picture in enumerate(pictures) for one in served]
        return await self._batcher.ask(each)

    async def ask_of_texts(self, asked: TextsAsked) -> list[Answer]:
        """Label texts or answer them, each with each prompt."""
        served = self._find_for("/texts", asked.prompts, len(asked.texts))
        each = []
        for number, text in enumerate(asked.texts):
            for one in served:
                row = TextRow(one.predictor.row_of(text).fields, task=asked.task)
                each.append(Question(one, number, row, asked.top_k, asked.max_tokens))
        return await self._batcher.ask(each)


def _read_picture(text: str, name: str, max_pixels: int, backbones: Mapping[str, Any]) -> Picture:
    """Decode an image, and make of it what each frozen model takes."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UserError(f"{name} is no base64. Send the bytes of an image file, encoded so.") from None
    image = read_image(data, max_pixels, name)
    return Picture(data, {kind: backbone.preprocess(image) for kind, backbone in backbones.items()})

"""What `caption train --method mapper --backbone photo` is worth on captioned photographs of one's own, in folds.

    python scripts/measure_own_photos.py --data captions.jsonl --json docs/results/own_photos.json

Every photograph is captioned by a mapper that learned from the other folds, a tenth of which it is watched on, and by
retrieval from the same photographs: of the captions of the k nearest, the one nearest to all of them in words.
"""

import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import tyro
from sklearn.feature_extraction.text import TfidfVectorizer

import mmprompt as mp
from markdown import table
from measure_photo_captions import COLUMNS, row_of
from measuring import run_main, write_figures
from mmprompt.captioning.data import CaptionData
from mmprompt.captioning.mapper import fit_mapper
from mmprompt.captioning.metrics.caption_metrics import score_captions
from mmprompt.captioning.predictor import CaptionFeatures

NEIGHBOURS = (1, 5, 15)


def divided(data: CaptionData, fold: int, n_folds: int, seed: int) -> CaptionData:
    """The same photographs, those of one fold as `test`, a tenth of the others as `val`."""
    order = random.Random(seed).sample(range(len(data.items)), len(data.items))
    parts = dict.fromkeys(order[fold::n_folds], "test")
    rest = [row for row in order if row not in parts]
    parts |= dict.fromkeys(rest[: len(rest) // 10], "val")
    return replace(data, items=tuple(replace(i, split=parts.get(row, "train")) for row, i in enumerate(data.items)))


def retrieved(data: CaptionData, features: CaptionFeatures, k: int) -> dict[str, str]:
    """Of the captions of the k nearest photographs that are learned from, the one nearest to all of them in words."""
    known = [*data.train, *data.val]
    have, asked = (
        F.normalize(features.of([item.image for item in items])[:, 0], dim=-1) for items in (known, data.test)
    )
    words = TfidfVectorizer(ngram_range=(1, 2)).fit([text for item in known for text in item.of(None)])
    said = {}
    for item, rows in zip(data.test, (asked @ have.T).topk(k).indices.tolist(), strict=True):
        texts = [text for row in rows for text in known[row].of(None)]
        vectors = words.transform(texts).toarray()
        said[item.image_id] = texts[int((vectors @ vectors.mean(0)).argmax())]
    return said


def main(
    data: Path,
    images: Path | None = None,
    n_folds: int = 4,
    n_measured: int | None = None,
    seed: int = 1,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Measure, print the table, write the figures.

    Args:
        data: photographs with captions; how the file divides them does not count.
        images: the folder of the photographs, if it is not that of the file.
        n_folds: parts, each of which is captioned once.
        n_measured: stop after so many of them.
        seed: of the folds and the trainings.
        json_file: where the figures go.
    """
    torch.set_num_threads(1)
    whole, captioner = mp.load_captions(data, images), mp.load_captioner("photo", device="cpu")
    features = CaptionFeatures(captioner)
    said: dict[str, dict[str, str]] = {"`photo`, as it ships": {}, "its mapper, learned on": {}}
    seconds = []
    for fold in range(n_measured or n_folds):
        part = divided(whole, fold, n_folds, seed)
        seen = features.of([item.image for item in part.test])
        with tempfile.TemporaryDirectory() as temporary:
            started = time.monotonic()
            fit_mapper(captioner, part, Path(temporary) / "own", seed=seed)
            seconds.append(round(time.monotonic() - started, 1))
            own = mp.load_captioner(Path(temporary) / "own", device="cpu")
        for name, model in zip(said, (captioner, own), strict=False):
            captions = mp.Captioner(model).caption_features(seen)
            said[name] |= {item.image_id: one.text for item, one in zip(part.test, captions, strict=True)}
        for k in NEIGHBOURS:
            said.setdefault(f"retrieval, {k} nearest", {}).update(retrieved(part, features, k))
    references = {item.image_id: item.of(None) for item in whole.items if item.image_id in next(iter(said.values()))}
    found = {name: score_captions(some, references) for name, some in said.items()}
    print(f"{len(references)} photographs, {len(part.train)} to learn from, {len(part.val)} to choose the epoch by")
    print(table(COLUMNS, [row_of(name, scores) for name, scores in found.items()]))
    print("seconds a training:", seconds)
    if json_file is not None:
        write_figures(json_file, {"seconds": seconds} | {name: scores.to_dict() for name, scores in found.items()})


if __name__ == "__main__":
    run_main(main, __doc__)

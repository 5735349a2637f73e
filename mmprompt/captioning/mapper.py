"""Learning the mapper between an image encoder and a language model, before any prompt (Mokady et al. 2021)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmprompt.captioning.data import NEUTRAL, CaptionData, CaptionItem, load_captions
from mmprompt.captioning.methods import MAPPER_RECIPE
from mmprompt.captioning.predictor import Captioner, CaptionFeatures
from mmprompt.captioning.readers.captioner import FrozenCaptioner, PrefixDecoder
from mmprompt.captioning.readers.load import (
    SETTINGS_FILE,
    SHIPPED,
    WEIGHTS_FILE,
    MapperParts,
    dtype_name,
    split_pair,
)
from mmprompt.captioning.task import CaptionProblem, encode_captions, epochs_of, tokenize_captions
from mmprompt.core.fit import refuse_changed
from mmprompt.errors import UserError, bad_file
from mmprompt.files import new_folder, tensor_bytes, write_bytes, write_json
from mmprompt.models.image_features import Progress
from mmprompt.settings import checked
from mmprompt.training.callbacks import Callback, EarlyStopping
from mmprompt.training.loop import train
from mmprompt.training.recipe import Recipe
from mmprompt.training.run_files import run_id_of, run_lock

N_WATCHED = 100
"""Validation images that a mapper's captions are judged on while it learns; of one alone there is no CIDEr-D."""


@checked
def fit_mapper(
    captioner: FrozenCaptioner,
    data: CaptionData | Path | str,
    out: Path | str,
    recipe: Recipe | None = None,
    seed: int = 1,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Learn the mapper between a frozen image encoder and a frozen language model (Mokady et al. 2021, "ClipCap").

    It is learned once, from captions of no focus where the data has some; prompts are then learned on top of it. Of the
    epochs, the one is kept whose captions of the validation part, or of its first 100 images, have the best CIDEr-D;
    the last one where fewer than two images are there to validate on.

    Args:
        captioner: of `load_captioner("ENCODER + LM")`; its mapper is trained in place. Or `photo` or `tiny`, which
            stay as they are: a copy of their mapper learns on.
        data: captions, or the name of an embedded set or a file.
        out: a new folder, which `load_captioner` takes afterwards; the log and checkpoints go to `OUT-training`.
        recipe: `MAPPER_RECIPE` by default; its `patience` ends the training early.
        seed: of the order of the images.
        callbacks: called as training goes.
        resume: go on from the newest checkpoint in `OUT-training`.
        progress: called with how many images are encoded and how many there are.
    Returns:
        One dict per epoch.
    Raises:
        UserError: this captioner has no mapper to train, the folder is there already, or pycocoevalcap is not installed
            and there are images to validate on.
        RunFailed: the loss stopped being finite, or weights of encoder or language model changed.
    """
    data = data if isinstance(data, CaptionData) else load_captions(data)
    recipe = MAPPER_RECIPE if recipe is None else recipe
    folder = Path(out)
    if folder.exists():
        raise UserError(f"{folder} is there already, and a mapper is never written over. Give another `out`.")
    captioner, mapper = _trainable(captioner)
    focus = NEUTRAL if any(item.of(NEUTRAL) for item in data.train) else None
    items, watched = data.with_captions("train", focus), [item for item in data.val if item.of(focus)][:N_WATCHED]
    watched = watched if len(watched) > 1 else []
    training = folder.with_name(f"{folder.name}-training")
    with run_lock(training):
        encoded = CaptionFeatures(captioner, progress=progress).of([item.image for item in [*items, *watched]])
        features, seen = encoded[: len(items)], encoded[len(items) :]
        texts = tokenize_captions(captioner, [item.of(focus) for item in items])
        captions = encode_captions(captioner, texts, captioner.decoder.budget)
        watch = partial(_cider_d, captioner, watched, seen, focus) if watched else None
        problem = CaptionProblem(captioner, mapper.requires_grad_(True), dict, features, captions, False, watch)
        config = {"data": data.fingerprint, "recipe": asdict(recipe), "seed": seed, "backbone": captioner.fingerprint}
        n_epochs = epochs_of(recipe, problem.n_items)
        if watched:
            callbacks = (EarlyStopping(recipe.patience or n_epochs, name="cider_d"), *callbacks)
            recipe = replace(recipe, patience=None)  # the loop's own would call it an accuracy
        try:
            history = train(problem, recipe, seed, n_epochs, training, run_id_of(config), callbacks, resume)
        finally:
            mapper.requires_grad_(False)
        refuse_changed(captioner)
        save_mapped(captioner, folder)
    return history


def _trainable(captioner: FrozenCaptioner) -> tuple[FrozenCaptioner, nn.Module]:
    """Return a captioner whose mapper may learn, and the mapper; refuse one that has none, or a frozen one."""
    captioner = reopened(captioner) if captioner.name in SHIPPED else captioner
    mapper: Any = getattr(captioner.decoder, "mapper", None)
    is_known = hasattr(mapper, "settings")  # as each has that `new_mapper` made
    if not is_known or mapper in captioner.model.modules():
        for_whom = "method mapper is for an image encoder and a language model"
        reason = "its own is trained already" if is_known else for_whom
        raise UserError(
            f"{captioner.name} has no mapper to train: {reason}. "
            "Use `backbone='ENCODER + LM'`, or `method='prompt-tuning'`."
        )
    return captioner, mapper


def _cider_d(captioner: FrozenCaptioner, items: Sequence[CaptionItem], features: Tensor, focus: str | None) -> float:
    """Measure the captions of images that a mapper is watched on, of features [N, T, D']."""
    from mmprompt.captioning.metrics.caption_metrics import score_captions

    said = zip(items, Captioner(captioner).caption_features(features), strict=True)
    written = {item.image_id: item.of(focus) for item in items}
    return score_captions({item.image_id: caption.text for item, caption in said}, written).cider_d


def reopened(captioner: FrozenCaptioner) -> FrozenCaptioner:
    """Return a captioner of `SHIPPED` whose mapper, a copy, is no part of the fingerprint and may learn on."""
    decoder: Any = captioner.decoder
    models: Any = captioner.model
    frozen = nn.ModuleDict({name: model for name, model in models.items() if name != "mapper"})
    own = PrefixDecoder(decoder.lm, deepcopy(decoder.mapper), decoder.start_ids[0], decoder.end_id, decoder.n_image)
    again = FrozenCaptioner(captioner.name, frozen, captioner.encode_image, own, captioner.tokenizer, captioner.pixels)
    again.encoder_fingerprint = captioner.encoder_fingerprint
    return again


def save_mapped(captioner: FrozenCaptioner, folder: Path) -> None:
    """Write the mapper of `load_pair` or `reopened`, after its training, as a new folder that `load_captioner` takes.

    The language model of a captioner that ships has no name of its own; its files go with the mapper.
    """
    if folder.exists():
        raise bad_file(folder, "is there already", "Give a new folder.")
    decoder: Any = captioner.decoder
    shipped = SHIPPED.get(captioner.name)
    encoder, lm = split_pair(captioner.name) if shipped is None else (captioner.name, None)
    parts = MapperParts(encoder, lm, captioner.fingerprint, dtype_name(captioner.dtype))
    with new_folder(folder) as place:
        for path in () if shipped is None else shipped.iterdir():
            shutil.copyfile(path, place / path.name)
        write_json(place / SETTINGS_FILE, asdict(decoder.mapper.settings) | asdict(parts))
        write_bytes(place / WEIGHTS_FILE, tensor_bytes(decoder.mapper.state_dict(), {"format": "pt"}))

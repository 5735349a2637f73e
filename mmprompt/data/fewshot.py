"""Which pictures a few-shot run may see: protocol `coop`, pick for pick.

The written rule: group the list by label in order of first appearance; of every group draw k without
replacement, or take it whole when it is smaller; then draw min(k, 4) of every validation group from the
same stream. The test part stays whole. This file does not know where the lists come from.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

from mmprompt.data.class_names import shortened
from mmprompt.data.splits import Dataset, Item, Splits, class_counts
from mmprompt.data.templates import check_template
from mmprompt.errors import bad_value

MAX_VAL_SHOTS = 4


def sample_few_shot(items: Iterable[Item], shots: int, rng: random.Random) -> tuple[Item, ...]:
    """Draw some pictures of every class (Zhou et al. 2022, the sampling of CoOp's released code).

    Args:
        items: in the order of the split file, which decides what a seed picks.
        shots: pictures a class, at least 1; a smaller class is taken whole and uses no random number.
        rng: advanced by the draw.
    Returns:
        The picks, class after class in order of first appearance.
    Raises:
        UserError: shots is below 1.
    """
    _check_shots(shots)
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    picks: list[Item] = []
    for group in groups.values():
        picks += rng.sample(group, shots) if len(group) >= shots else group
    return tuple(picks)


def few_shot_train_val(
    train: Iterable[Item], val: Iterable[Item], shots: int, seed: int
) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Draw the train shots and then min(shots, 4) val shots from one random stream.

    Args:
        train: in the order of the split file.
        val: likewise; may be empty.
        shots: pictures a class, at least 1.
        seed: of the stream, 0 or more; the papers use 1, 2 and 3.
    Raises:
        UserError: shots is below 1 or the seed is negative.
    """
    if seed < 0:
        raise bad_value("seed", seed, "0 or more was expected", "Use 1, 2 or 3 as the papers do.")
    rng = random.Random(seed)
    return sample_few_shot(train, shots, rng), sample_few_shot(val, min(shots, MAX_VAL_SHOTS), rng)


def draw_dataset(
    splits: Splits,
    name: str,
    shots: int | None,
    seed: int,
    template: str = "a photo of a {}.",
    templates: tuple[str, ...] = (),
    protocol: str = "coop",
    augment: str = "coop",
    licence: str = "",
    recipe: Mapping[str, str | int | float | bool | None] | None = None,
) -> Dataset:
    """Draw the shots and say which classes had too few pictures.

    Args:
        splits: all pictures.
        name: of the set.
        shots: pictures a class, at least 1, or None for all of train and val.
        seed: of the draw.
        template: as in `Dataset`, like all that follow.
        templates: the ensemble.
        protocol: the rule of the draw.
        augment: what suits these pictures.
        licence: of the pictures.
        recipe: settings that suit this set.
    Raises:
        UserError: shots or seed is out of range, or a template has no single `{}`.
    """
    for text in (template, *templates):
        check_template(text)
    train, val, notes = splits.train, splits.val, splits.notes
    shots = shots if train else None
    if shots is not None:
        train, val = few_shot_train_val(splits.train, splits.val, shots, seed)
        notes = (*notes, *_short_classes(splits, shots))
    return Dataset(
        name=name,
        root=splits.root,
        class_names=splits.class_names,
        train=train,
        val=val,
        test=splits.test,
        template=template,
        templates=templates,
        shots=shots,
        seed=None if shots is None else seed,
        protocol=protocol,
        augment=augment,
        notes=notes,
        licence=licence,
        recipe=recipe or {},
    )


def _check_shots(shots: int) -> None:
    if shots < 1:
        raise bad_value("shots", shots, "at least 1 picture a class is needed", "Use --shots 1 or more.")


def _short_classes(splits: Splits, shots: int) -> tuple[str, ...]:
    counts = class_counts(splits.train, len(splits.class_names))
    short = [name for name, count in zip(splits.class_names, counts, strict=True) if count < shots]
    if not short:
        return ()
    return (f"Classes with fewer than {shots} training pictures, taken whole: {shortened(short)}.",)

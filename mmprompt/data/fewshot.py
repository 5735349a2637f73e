"""Which pictures a few-shot run may see, by the rules of the published code: the same seed picks the same pictures.

`coop`: group the list by label in order of first appearance; of every group draw k without replacement, or take it
whole when it is smaller; then draw min(k, 4) of every validation group from the same stream.
`clip-lora`: validation before training, and a smaller group is drawn from with repetition; a set without a validation
part gives both from one draw of its training part. `tip-adapter`: training alone, validation whole, with repetition.
`jsonl`: a published list, read and not drawn. The test part stays whole in all of them, and classes are left out
only afterwards (`base_new`). This file does not know where the lists come from.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar, get_args

from mmprompt.data.class_names import shortened
from mmprompt.data.published_shots import read_published_shots
from mmprompt.data.splits import Dataset, Item, Splits, by_label, class_counts
from mmprompt.data.templates import check_template
from mmprompt.errors import UserError, bad_value, unknown_name

MAX_VAL_SHOTS = 4

Rule = Literal["coop", "clip-lora", "tip-adapter", "jsonl"]
RULES: tuple[Rule, ...] = get_args(Rule)

T = TypeVar("T")
Picks = tuple[tuple[Item, ...], tuple[Item, ...]]


def sample_few_shot(items: Iterable[Item], shots: int, rng: random.Random, repeat: bool = False) -> tuple[Item, ...]:
    """Draw some pictures of every class (Zhou et al. 2022, the sampling of CoOp's released code).

    Args:
        items: in the order of the split file, which decides what a seed picks.
        shots: pictures a class, at least 1; a smaller class is taken whole and uses no random number.
        rng: advanced by the draw.
        repeat: draw a smaller class with repetition instead, as CLIP-LoRA's released code does.
    Returns:
        The picks, class after class in order of first appearance.
    Raises:
        UserError: shots is below 1.
    """
    _check_shots(shots)
    return sample_groups(by_label(items).values(), shots, rng, repeat)


def sample_groups(groups: Iterable[Sequence[T]], shots: int, rng: random.Random, repeat: bool = False) -> tuple[T, ...]:
    """Draw `shots` members of every group, without repetition, as `sample_few_shot` does of classes of pictures.

    Args:
        groups: their order and that of their members decide what a seed picks.
        shots: at least 1; a smaller group is taken whole and uses no random number.
        rng: advanced by the draw.
        repeat: draw a smaller group with repetition instead.
    """
    picks: list[T] = []
    for group in groups:
        if len(group) >= shots:
            picks += rng.sample(group, shots)
        else:
            picks += rng.choices(group, k=shots) if repeat else group
    return tuple(picks)


def few_shot_train_val(train: Iterable[Item], val: Iterable[Item], shots: int, seed: int) -> Picks:
    """Draw the train shots and then min(shots, 4) val shots from one random stream.

    Args:
        train: in the order of the split file.
        val: likewise; may be empty.
        shots: pictures a class, at least 1.
        seed: of the stream, 0 or more; the papers use 1, 2 and 3.
    Raises:
        UserError: shots is below 1 or the seed is negative.
    """
    rng = draw_stream(seed)
    return sample_few_shot(train, shots, rng), sample_few_shot(val, min(shots, MAX_VAL_SHOTS), rng)


def draw_shots(splits: Splits, shots: int, seed: int, rule: str = "coop", published: Path | None = None) -> Picks:
    """Draw the few-shot train and val parts by one of the rules of this file.

    Args:
        splits: all pictures.
        shots: pictures a class, at least 1.
        seed: of the stream, 0 or more; the papers use 1, 2 and 3, Tip-Adapter 1 alone.
        rule: `"coop"`, `"clip-lora"`, `"tip-adapter"` or `"jsonl"`.
        published: the folder with published lists, for rule jsonl.
    Raises:
        UserError: the rule is unknown, shots or seed is out of range, a class has too few pictures for the rule,
            or the published list is missing or names other pictures.
    """
    if rule not in RULES:
        raise unknown_name("protocol", rule, RULES)
    if rule == "coop":
        return few_shot_train_val(splits.train, splits.val, shots, seed)
    rng = draw_stream(seed)
    _check_shots(shots)
    if rule == "jsonl":
        if published is None:
            raise UserError(
                "protocol is jsonl, but only a data set known by name has published lists. Use `protocol='coop'`."
            )
        return read_published_shots(published, splits, shots, seed)
    if rule == "tip-adapter":
        return sample_few_shot(splits.train, shots, rng, repeat=True), splits.val
    if not splits.val:
        return _both_from_train(splits, shots, rng)
    val = sample_few_shot(splits.val, min(shots, MAX_VAL_SHOTS), rng, repeat=True)
    return sample_few_shot(splits.train, shots, rng, repeat=True), val


def base_new(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Divide a dataset by class into base and new (Zhou et al. 2022, CoCoOp's base-to-new protocol).

    The first half of the labels, rounded up, is base, the rest is new, and both count their labels from 0. The shots
    must have been drawn before, from all classes: drawing afterwards picks other pictures.

    Args:
        dataset: with its shots drawn; four classes or more, so that there is something to choose on both sides.
    Returns:
        Base and new, each with its own class names and its own part of train, val and test.
    Raises:
        UserError: there are fewer classes.
    """
    if len(dataset.class_names) < 4:
        n_classes = len(dataset.class_names)
        raise UserError(
            f"{dataset.name} has {n_classes} classes, but base-to-new needs four or more, two to learn and two new "
            "ones. Use few-shot."
        )
    n_base = -(-len(dataset.class_names) // 2)
    return _only(dataset, range(n_base)), _only(dataset, range(n_base, len(dataset.class_names)))


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
    rule: str = "coop",
    published: Path | None = None,
) -> Dataset:
    """Draw the shots and say which classes had too few pictures.

    Args:
        splits: all pictures.
        name: of the set.
        shots: pictures a class, at least 1, or None for all of train and val.
        seed: of the draw.
        template: as in `Dataset`, like all that follow.
        templates: the ensemble.
        protocol: where split and draw come from.
        augment: what suits these pictures.
        licence: of the pictures.
        recipe: settings that suit this set.
        rule: how the shots are drawn, as in `draw_shots`.
        published: the folder with published lists, as in `draw_shots`.
    Raises:
        UserError: as `draw_shots`, or a template has no single `{}`.
    """
    for text in (template, *templates):
        check_template(text)
    train, val, notes = splits.train, splits.val, splits.notes
    shots = shots if train else None
    if shots is not None:
        train, val = draw_shots(splits, shots, seed, rule, published)
        notes = (*notes, *_short_classes(splits, shots, rule))
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
        protocol=_protocol(protocol, rule),
        augment=augment,
        notes=notes,
        licence=licence,
        recipe=recipe or {},
    )


def _protocol(split: str, rule: str) -> str:
    """Whose split and whose rule; the usual one of the two needs no word."""
    if rule == "coop":
        return split
    return rule if split in ("coop", "folder") else f"{split}, {rule}"


def draw_stream(seed: int) -> random.Random:
    """The random numbers of a draw.

    Raises:
        UserError: the seed is negative.
    """
    if seed < 0:
        raise bad_value("seed", seed, "0 or more was expected", "Use 1, 2 or 3 as the papers do.")
    return random.Random(seed)


def _both_from_train(splits: Splits, shots: int, rng: random.Random) -> Picks:
    n_val = min(shots, MAX_VAL_SHOTS)
    train: list[Item] = []
    val: list[Item] = []
    for label, group in by_label(splits.train).items():
        if len(group) < shots + n_val:
            raise UserError(
                f"the class {splits.class_names[label]!r} has {len(group)} training pictures, but protocol clip-lora "
                f"draws {shots} + {n_val} where there is no val part. Use `protocol='coop'`, or fewer shots."
            )
        picked = rng.sample(group, shots + n_val)
        train += picked[:shots]
        val += picked[shots:]
    return tuple(train), tuple(val)


def _only(dataset: Dataset, labels: range) -> Dataset:
    train, val, test = (
        tuple(replace(item, label=item.label - labels.start) for item in part if item.label in labels)
        for part in (dataset.train, dataset.val, dataset.test)
    )
    class_names = dataset.class_names[labels.start : labels.stop]
    return replace(dataset, class_names=class_names, train=train, val=val, test=test)


def _check_shots(shots: int) -> None:
    if shots < 1:
        raise bad_value("shots", shots, "at least 1 picture a class is needed", "Use `shots=1` or more.")


def _short_classes(splits: Splits, shots: int, rule: str) -> tuple[str, ...]:
    counts = class_counts(splits.train, len(splits.class_names))
    short = [name for name, count in zip(splits.class_names, counts, strict=True) if count < shots]
    if not short:
        return ()
    done = "taken whole" if rule in ("coop", "jsonl") else "filled up by repeating some"
    return (f"Classes with fewer than {shots} training pictures, {done}: {shortened(short)}.",)

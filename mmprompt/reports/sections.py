"""Sections that explain runs of more than one kind, each made of numbers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mmprompt.core.confidence import doubtful, fit_temperature, log_loss, out_of_fold, reliability, scaled
from mmprompt.core.metrics import Evaluation
from mmprompt.reports.explanation import Asked, Picture, Section, written
from mmprompt.reports.explanation_figures import draw_worth
from mmprompt.reports.figures import draw_classes, draw_reliability
from mmprompt.reports.tables import counted

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

N_DOUBTED = 8
"""Items of a doubtful label that are shown."""
N_NEXT = 5
"""Classes that are asked for."""
T = TypeVar("T")


def evenly(items: Sequence[T], most: int) -> list[T]:
    """Return at most so many of some items, one or more, evenly taken."""
    return list(items[:: -(-len(items) // most)])


def words_section(
    near: Sequence[tuple[str, Sequence[tuple[str, float]]]], real: Sequence[float], is_distance: bool
) -> Section:
    """Say which words lie near each vector, nearest first, and whether nearer than real words lie to each other.

    `real` are the distances, or else cosines, of some real words to the nearest other word.
    """
    measure = "distance" if is_distance else "cosine"
    low, middle, high = np.percentile(real, [5, 50, 95])
    own = np.array([words[0][1] for _, words in near])
    n_far = int((own > high).sum() if is_distance else (own < low).sum())
    if n_far:
        verdict = (
            f"{n_far} of {counted(len(near), 'vector')} {'lies' if n_far == 1 else 'lie'} farther from every word than "
            "19 of 20 words do: read no meaning into their neighbours."
        )
    else:
        verdict = "No vector lies farther from every word than words lie from each other."
    return Section(
        "words",
        "The words nearest to each vector",
        f"A real word has its nearest other word at a {measure} of {middle:.2f} ({low:.2f} to {high:.2f} for 9 of 10); "
        f"the vectors have theirs at {own.min():.2f} to {own.max():.2f}. {verdict}",
        f"Numbers are {measure}s. A learned vector need not lie near any word; it is all vectors together that count.",
        {"vector": "", "nearest words": ""},
        [(name, [(word, float(number)) for word, number in words]) for name, words in near],
    )


def worth_section(names: Sequence[str], loss: Sequence[float], accuracy: Sequence[float] | None, on: str) -> Section:
    """Say what each vector is worth: by how much the loss grows, in nats, and the accuracy falls, without it.

    `accuracy` is None where there is nothing to be right about; `on` says of what it was measured, as "of 120 images".
    """
    order = np.argsort(-np.array(loss), kind="stable")
    best, n_idle = int(order[0]), sum(value <= 0 for value in loss)
    said = f"Without {names[best]} the loss grows most, by {loss[best]:.3f} nats"
    said += f", and {100 * accuracy[best]:.1f} points of accuracy go." if accuracy is not None else "."
    if n_idle == len(loss):
        said = "No vector is of use by this measure: without any one of them the loss is no higher."
    elif n_idle:
        whose = "vector is" if n_idle == 1 else "vectors are"
        said += f" {n_idle} {whose} of no use by this measure: the loss is no higher without."
    measured = "mean cross entropy" + (" and accuracy" if accuracy is not None else "")
    columns = {"without": "", "loss grows by": "+.4f"} | ({} if accuracy is None else {"accuracy falls by": "signed"})
    rows = [(names[n], loss[n], *(() if accuracy is None else (accuracy[n],))) for n in order]
    return Section(
        "worth",
        "What each vector does",
        said,
        f"Each vector left out alone, and all others kept: {measured} {on}. Vectors that do the same thing look idle "
        "one by one.",
        columns,
        rows,
        {"How the loss grows without each vector": partial(draw_worth, names, loss)},
    )


def changes_section(
    before: Evaluation, after: Evaluation, beside: str, asked: Asked, pictures: Sequence[Picture] = ()
) -> Section:
    """Say which classes gained and lost: `before` is without the prompt, and called `beside`, `after` with it."""
    old, new = before.per_class, after.per_class
    counts = np.bincount(after.labels, minlength=len(after.class_names))
    n_of = dict(zip(after.class_names, counts.tolist(), strict=True))
    order = sorted(new, key=lambda name: old[name] - new[name])
    n_up, n_down = (sum(sign * (new[name] - old[name]) > 0 for name in new) for sign in (1, -1))
    n_won = int((after.correct & ~before.correct).sum())
    n_lost = int((before.correct & ~after.correct).sum())
    said = f"Beside {beside} {counted(n_won, 'answer')} became right and {n_lost} wrong: "
    said += f"{n_up} of {len(new)} classes gained and {n_down} lost."
    return Section(
        "changes",
        "Classes that gained and lost",
        said,
        "",
        {"class": "", asked.seen: ",", beside: "percent", "with the prompt": "percent", "gained": "signed"},
        [(name, n_of[name], old[name], new[name], new[name] - old[name]) for name in order],
        {
            "Accuracy of each class before and after": partial(
                draw_classes, list(new), list(old.values()), list(new.values()), beside=beside
            )
        },
        pictures,
    )


def calibration_section(
    held_out: tuple[np.ndarray, np.ndarray], validation: tuple[np.ndarray, np.ndarray] | None
) -> Section:
    """Say what its probabilities are worth, and what one temperature, fitted on validation, makes of them.

    Either part is class probabilities [N, C] and labels [N]; None where there is no validation.
    """
    probabilities, labels = held_out
    ways = {"as it is": (1.0, probabilities)}
    if validation is not None:
        temperature = fit_temperature(*validation)
        ways["temperature scaled"] = (temperature, scaled(probabilities, temperature))
    right = probabilities.argmax(1) == labels
    bins = {name: reliability(table.max(1), right) for name, (_, table) in ways.items()}
    surer = "surer than it is right" if probabilities.max(1).mean() > right.mean() else "less sure than it is right"
    error = {name: written(each.error, "percent") for name, each in bins.items()}
    said = f"It gives its answers {written(probabilities.max(1).mean(), 'percent')} on average, and "
    said += f"{written(right.mean(), 'percent')} are right: {surer}, with an expected calibration error of "
    said += f"{error['as it is']}. "
    if validation is None:
        said += "There is no validation part, so no temperature was fitted."
    else:
        said += f"With the temperature {temperature:.2f}, fitted on {len(validation[1])} of validation, it is "
        said += f"{error['temperature scaled']}; no answer changes."
    return Section(
        "calibration",
        "How far its probabilities can be trusted",
        said,
        "On the dotted line, 80 % sure is right in 80 % (15 bins, Guo et al. 2017). The prompt itself is left as it "
        "is; --calibrated FOLDER writes a copy of a classifier's with its temperature.",
        {"": "", "temperature": ".3f", "calibration error": "percent", "log-loss": ".3f"},
        [(name, t, bins[name].error, log_loss(table, labels)) for name, (t, table) in ways.items()],
        {f"Share right over the probability given, {name}": partial(draw_reliability, bins[name]) for name in ways},
    )


def labels_section(
    items: Sequence[tuple[str, str]],
    features: Callable[[Sequence[int]], Tensor],
    what: str,
    image: Callable[[int], Image.Image | None] = lambda place: None,
) -> Section:
    """Look for labels that the other items speak against (Northcutt et al. 2021, "Confident Learning").

    `features` gives [n, E] of the frozen model for some items, by their places; `what` they are is such as "image", and
    `image` shows one, None where there is nothing to show.
    """
    name, title = "labels", "Labels that may be wrong"
    n_of = Counter(label for _, label in items)
    places = [place for place, (_, label) in enumerate(items) if n_of[label] > 1]
    classes = sorted({items[place][1] for place in places})
    if find_spec("cleanlab") is None:
        return Section(name, title, 'Not looked for: pip install "mmprompt[explain]" brings what it takes.')
    if len(classes) < 2:
        return Section(name, title, f"Not looked for: it takes two classes with two training {what}s or more.")
    labels = [classes.index(items[place][1]) for place in places]
    table = out_of_fold(features(places), labels)
    agreed = float((table.argmax(1) == np.array(labels)).mean())
    judge = f"Logistic regression on the frozen features, of each {what} by those fitted without it, agrees with "
    judge += f"{written(agreed, 'percent')} of the labels"
    guessed = max(map(labels.count, range(len(classes)))) / len(labels)
    if agreed < (1 + guessed) / 2:  # nearer to the most frequent label for all than to what was given
        return Section(name, title, f"Not looked for. {judge}, so its doubts would mean little.")
    rows: list[tuple[str, str, str, float]] = []
    pictures: list[Picture] = []
    for row in doubtful(table, labels):
        item, label = items[places[row]]
        like = classes[int(table[row].argmax())]
        rows.append((item, label, like, float(table[row, labels[row]])))
        shown = image(places[row]) if len(pictures) < N_DOUBTED else None
        if shown is not None:
            pictures.append(Picture(shown, f"labelled {label}", f"looks like {like}"))
    said = f"{len(rows)} of {counted(len(places), f'training {what}')} carry a label that the others speak against."
    said += " Look at them; a prompt learns from every label it is given." if rows else ""
    note = f"{judge}; cleanlab finds those that it speaks against. An unusual {what} of the right class is found too."
    columns = {what: "", "labelled": "", "looks like": "", "probability of its label": "percent"}
    return Section(name, title, said, note, columns, rows, pictures=pictures)


def next_section(after: Evaluation, n_trained: Mapping[str, int], item: str, verb: str, asked: Asked) -> Section:
    """Say of which classes more should be collected: each an `item` such as "image", to "Photograph"."""
    counts = after.confusion
    rows = []
    for place, name in enumerate(after.class_names):
        n, right = int(counts[place].sum()), int(counts[place, place])
        others = np.where(np.arange(len(counts)) == place, 0, counts[place])
        taken_for = after.class_names[int(others.argmax())] if others.max() else ""
        rows.append((name, right / n if n else None, n, n_trained.get(name, 0), taken_for, int(others.max())))
    # of few that are held out little is known, so each class has one right and one wrong lent to it
    rows.sort(key=lambda row: (((row[1] or 0.0) * row[2] + 1) / (row[2] + 2), row[3]))
    worst = [row for row in rows if row[1] != 1.0][:N_NEXT]
    sentences = []
    for name, share, n, n_own, taken_for, n_taken in worst[:3]:
        if share is None:
            sentences.append(f"Hold some {name} out: there is no {item} to say how well it is known.")
            continue
        mixed = f", {n_taken} taken for {taken_for}" if taken_for else ""
        sentences.append(
            f"{verb} more of {name}: {round(share * n)} of {n} {asked.seen} are right{mixed}; it learned from {n_own}."
        )
    if not sentences:
        sentences = [f"Every {item} {asked.seen} is right: {verb.lower()} harder ones before trusting it further."]
    return Section(
        "next",
        f"What to {verb.lower()} next",
        " ".join(sentences),
        "Classes with the lowest accuracy first, of equals those with the fewest to learn from. "
        "Where two are taken for each other, take both side by side.",
        {"class": "", "right": "percent", asked.seen: ",", "learned from": ",", "mostly taken for": ""},
        [row[:5] for row in worst],
    )


def kept_of(words: float, soft: float, bare: float) -> str:
    """Say how much of a soft prompt's gain over none its words keep; of all more is better."""
    if soft <= bare:
        return ": there was no gain to keep."
    kept = (words - bare) / (soft - bare)
    return f": the words keep {100 * kept:.0f} % of what was gained." if kept > 0 else ": the words keep nothing of it."

"""What the report of caption prompts says in words and in its table of gains; every claim follows from an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mmprompt.captioning.data import CaptionData
from mmprompt.captioning.measure import N_CURVE, NO_PROMPT, CaptionMeasure, Point
from mmprompt.captioning.report.tables import gain_rows
from mmprompt.reports.numbers import between, missing_pictures, percent, signed


def of(measure: CaptionMeasure, data: CaptionData, command: str, n_missing: int) -> dict[str, Any]:
    """All texts of a report by their name in the template.

    Args:
        measure: what was measured.
        data: the set that it was measured on.
        command: how to repeat it.
        n_missing: pictures that were to be shown and can no longer be read.
    """
    n_images = len(measure.speakers[0].said)
    pictures = f"{n_images:,} pictures"
    return {
        "title": f"{measure.data}: captions with a focus",
        "eyebrow": " · ".join(["captions", measure.data, measure.split, f"on {measure.captioner}", pictures]),
        "headline": headline(measure),
        "leads": leads(measure),
        "gains": {focus: gain_rows(measure, focus) for focus in measure.focuses},
        "curve_note": (
            f"Measured on the first {min(N_CURVE, n_images)} pictures. Grounded: of all that captions name, the share "
            "that a reference of the picture names too. CIDEr-D is against the references of the focus."
        ),
        "curve_sentences": [curve_sentence(focus, some) for focus, some in measure.strengths.items() if some],
        "missing_pictures": missing_pictures(n_missing),
        "notes": notes(measure, data),
        "command": command,
        "facts": facts(measure, data),
    }


def headline(measure: CaptionMeasure) -> dict[str, str]:
    """The gain in adherence over the captioner without a prompt, its number apart."""
    lifts = {focus: measure.lifts[focus]["adherence over none"] for focus in measure.focuses}
    if len(lifts) == 1:
        ((focus, lift),) = lifts.items()
        low, high = lift.interval
        points = f"{100 * abs(lift.difference):.1f} points"
        after = " over the captioner without it."
        if low <= 0 <= high:
            before = f"The learned prompt made no clear difference to adherence to {focus}: "
            return {"before": before, "number": f"{signed(lift.difference)} points", "after": after}
        verb = "raised" if low > 0 else "lowered"
        return {"before": f"The learned prompt {verb} adherence to {focus} by ", "number": points, "after": after}
    n_raised = sum(lift.interval[0] > 0 for lift in lifts.values())
    if n_raised < len(lifts):
        after = " learned prompts clearly raised adherence to their focus."
        return {"before": "", "number": f"{n_raised} of {len(lifts)}", "after": after}
    least, most = (f"{100 * end(lift.difference for lift in lifts.values()):.1f}" for end in (min, max))
    number = f"{least} points" if least == most else f"{least} to {most} points"
    after = " over the captioner without one."
    return {"before": "Learned prompts raised adherence to their focus by ", "number": number, "after": after}


def leads(measure: CaptionMeasure) -> list[str]:
    """What adherence is, what words reach, whether each prompt keeps to its own, and whether what is named is there."""
    scores = [measure.focus_scores[focus][focus] for focus in measure.focuses]
    texts = [
        "Adherence is the share of the items a caption names that belong to the focus it should keep to. The "
        f"{measure.judge} tells what it names."
    ]
    over_words = {focus: measure.lifts[focus]["adherence over words"] for focus in measure.focuses}
    gained = [f"{focus} {signed(lift.difference)}" for focus, lift in over_words.items()]
    texts.append(f"Over the best of some hand-written wordings, learning gains in points: {joined(gained)}.")
    if len(measure.confusion.focuses) > 1:
        which = "Every" if measure.confusion.is_diagonal else "Not every"
        texts.append(
            f"{which} learned prompt keeps to its focus more than to any other and more than any other prompt does."
        )
    grounded = [
        f"{one.focus} {percent(share)}" for one in scores if (share := one.values["grounded_precision_all"]) is not None
    ]
    if grounded:
        bare = measure.focus_scores[NO_PROMPT][measure.focuses[0]].values["grounded_precision_all"]
        beside = "" if bare is None else f", and {percent(bare)} without a prompt"
        texts.append(f"Of what captions name, this share is in the references: {joined(grounded)}{beside}.")
    texts += [fall for focus in measure.focuses if (fall := grounding_lost(measure, focus))]
    return texts


def grounding_lost(measure: CaptionMeasure, focus: str) -> str:
    """A sentence where a prompt clearly makes captions name what is not there, else nothing."""
    lift = measure.lifts[focus].get("grounded_precision_all over none")
    if lift is None or lift.interval[1] >= 0:
        return ""
    change = f"{signed(lift.difference)} points ({between(lift.interval, with_sign=True)})"
    return f"With the prompt for {focus}, captions are less grounded than without one: {change}."


def curve_sentence(focus: str, points: Sequence[Point]) -> str:
    """Where each of the three measures is highest; of equal ones at the least strength."""
    best = {"adherence": max(points, key=lambda point: point.adherence)}
    grounded = [point for point in points if point.grounded_precision is not None]
    if grounded:
        best["grounded precision"] = max(grounded, key=lambda point: point.grounded_precision or 0.0)
    best["CIDEr-D"] = max(points, key=lambda point: point.cider_d)
    highest = [f"{name} at strength {point.strength:g}" for name, point in best.items()]
    return f"For {focus}, highest is {joined(highest)}."


def notes(measure: CaptionMeasure, data: CaptionData) -> list[str]:
    """What a careful reader should know, each once: of the data, the measures and the human ceiling."""
    ceilings = [note for focus in measure.focuses for note in measure.focus_scores[focus][focus].notes]
    return list(dict.fromkeys([*data.notes, *measure.notes, *ceilings]))


def facts(measure: CaptionMeasure, data: CaptionData) -> list[tuple[str, str]]:
    """The settings of the measurement."""
    wordings = {one.focus: one.words for one in measure.speakers if one.words}
    chosen_on = "validation" if data.val else "train"
    decoding = {name.replace("_", " "): value for name, value in asdict(measure.decoding).items() if value is not None}
    found = [
        ("captioner", measure.captioner),
        ("pictures", f"{measure.data}, {measure.split}: {len(measure.speakers[0].said):,}"),
        ("judge", measure.judge),
        *((f"words for {focus}", f"“{words}”, the best on {chosen_on}") for focus, words in wordings.items()),
        *((name, f"{value:g}") for name, value in decoding.items()),
    ]
    encoders = dict.fromkeys(score.encoder for score in measure.clip_scores.values())
    found += [("CLIPScore by", name) for name in encoders]
    return found + ([("licence of the pictures", data.licence)] if data.licence else [])


def joined(parts: Sequence[str]) -> str:
    """Parts as one list in words."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"

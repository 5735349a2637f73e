"""Focus sets from neutral captions: of several references of one image, those that speak most of a focus.

It works for objects and actions. It does not for emotions, which neutral captions hardly name; `build_focus` says so.
Choosing by one half of the vocabulary has a price, measured on COCO's Karpathy test images: the chosen captions hold
more nouns of the half that chose (2.49 against 1.56 of any caption) and fewer of the other (1.68 against 1.97); verbs
likewise (1.20 against 0.58, and 0.32 against 0.46). The half that is left to judge by therefore underrates them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mmprompt.captioning.data import NEUTRAL, CaptionData
from mmprompt.captioning.parts_of_speech import CHOOSING, nouns, verbs
from mmprompt.errors import UserError, unknown_name

TAGGER = "tagger"
"""How a `chosen_by` begins where TextBlob's Pattern tagger chose."""

_COUNTED: dict[str, tuple[str, Callable[[str, int], tuple[str, ...]]]] = {
    "objects": ("nouns", nouns),
    "actions": ("verbs", verbs),
}


def build_focus(data: CaptionData, focus: str) -> CaptionData:
    """Add captions of a focus, chosen among the neutral captions of each image.

    Kept are those with the most different nouns (objects) or verbs that are no auxiliaries (actions). Only one half of
    the vocabulary is counted, so that the other half is left to judge by.

    Args:
        data: with two or more neutral captions for some image at least, such as COCO's.
        focus: `objects` or `actions`.
    Returns:
        The data with this focus, with `chosen_by` and a note on how its captions were chosen.
    """
    if focus == "emotions":
        raise UserError(
            "captions of emotions cannot be chosen among neutral ones: COCO's hold 0.25 emotion words each, most of "
            "them meant literally (top, playing, fire). Give SentiCap, FlickrStyle, ArtEmis, or captions of your own."
        )
    if focus not in _COUNTED:
        raise unknown_name("focus to choose captions by", focus, _COUNTED)
    if focus in data.focuses:
        raise UserError(f"{data.name} has captions of {focus} already. Use them as they are.")
    several = sum(len(item.of(NEUTRAL)) > 1 for item in data.items)
    if not several:
        raise UserError(
            f"{data.name} has no image with two or more neutral captions to choose {focus} among. "
            f"Give captions of {focus}, or a set with several references, such as COCO's."
        )
    what, counted = _COUNTED[focus]
    items = []
    for item in data.items:
        counts = {caption: len(set(counted(caption, CHOOSING))) for caption in item.of(NEUTRAL)}
        most = max(counts.values(), default=0)
        chosen = tuple(caption for caption, count in counts.items() if count == most > 0)
        items.append(replace(item, captions={**item.captions, focus: chosen}) if chosen else item)
    n_chosen = sum(bool(item.of(focus)) for item in items)
    if not n_chosen:
        raise UserError(f"no neutral caption of {data.name} holds {what}. Give captions of {focus}.")
    how = f"{TAGGER}: the most {what} of half {CHOOSING} of the vocabulary"
    note = (
        f"Captions of {focus} are the neutral ones with the most {what}, of {n_chosen} of {len(items)} images "
        f"({several} have more than one to choose among); judge them by the other half of the vocabulary."
    )
    return replace(data, items=tuple(items), chosen_by={**data.chosen_by, focus: how}, notes=(*data.notes, note))

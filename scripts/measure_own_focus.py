"""A focus of one's own from 50 caption pairs: six of them on drawn scenes, each judged by a rule on 60 other scenes.

    python scripts/measure_own_focus.py --json docs/results/own_focus.json

None of the six is among what the captioner of `tiny` was trained on. Pairs and rules were written before anything was
trained on them. A caption is right if it has the focus's form, and all that it says is so.
"""

import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from PIL import Image

import mmprompt as mp
from markdown import table
from mmprompt.captioning.choice import choose_method
from mmprompt.captioning.data import CaptionData, CaptionItem
from mmprompt.captioning.measure import wordings_for
from mmprompt.captioning.metrics.adherence import LexiconJudge
from mmprompt.captioning.predictor import CaptionFeatures, Guidance, hard_prompt
from mmprompt.captioning.readers.captioner import FrozenCaptioner
from mmprompt.files import make_folder
from openart.words import BACKGROUNDS

N_PAIRS, N_JUDGED = 50, 60
ANIMALS = {"bee", "elephant", "octopus", "camel", "bird", "whale", "rooster", "shark"}
MOODS = {"happy": "good", "in love": "good", "sad": "bad", "angry": "bad", "scared": "bad", "sick": "bad"}
NUMBERS = ("no animal", "one animal", "two animals")
COLOUR_DISTANCE = 24
"""Of a background to a named colour, in units of 255 over three channels."""


@dataclass(frozen=True)
class Scene:
    """What a scene shows, as its references and its corners say; no colour where the background is not one."""

    objects: tuple[str, ...]
    emotion: str
    action: str
    colour: str

    @property
    def n_animals(self) -> int:
        """How many of the two objects are animals."""
        return len(ANIMALS.intersection(self.objects))


@dataclass(frozen=True)
class Focus:
    """What somebody writes of a scene, None where it has nothing to say of it, and the rule that judges a caption."""

    name: str
    write: Callable[[Scene], str | None]
    is_right: Callable[[str, Scene], bool]


def said_in(pattern: str, *names: str) -> Callable[[str, Scene], bool]:
    """The rule that a caption is wholly of a form and every part of it, by its name, is what the scene shows."""

    def rule(caption: str, scene: Scene) -> bool:
        found = re.fullmatch(pattern, caption)
        if found is None:
            return False
        shown = {"emotion": scene.emotion, "action": scene.action, "colour": scene.colour}
        shown |= {"mood": MOODS.get(scene.emotion, ""), "number": NUMBERS[scene.n_animals]}
        said = [(name, found[name]) for name in names]
        objects = [part for name, part in said if name.startswith("object")]
        others = all(part == shown[name] for name, part in said if not name.startswith("object"))
        return others and len(set(objects)) == len(objects) and set(objects) <= set(scene.objects)

    return rule


FOCUSES = (
    Focus("short", lambda s: f"{s.objects[0]}.", said_in(r"(?P<object>[a-z ]+)\.", "object")),
    Focus(
        "long",
        lambda s: (
            f"in this scene there are two things, the {s.objects[0]} and the {s.objects[1]}, while a person is "
            f"{s.action} and a face seems {s.emotion}."
        ),
        said_in(
            r"in this scene there are two things, the (?P<object1>[a-z ]+?) and the (?P<object2>[a-z ]+?), while a "
            r"person is (?P<action>[a-z ]+?) and a face seems (?P<emotion>[a-z ]+)\.",
            "object1",
            "object2",
            "action",
            "emotion",
        ),
    ),
    Focus(
        "colour",
        lambda s: f"the background is {s.colour}." if s.colour else None,
        said_in(r"the background is (?P<colour>[a-z]+)\.", "colour"),
    ),
    Focus(
        "count",
        lambda s: f"{NUMBERS[s.n_animals]}.",
        said_in(r"(?P<number>[a-z ]+)\.", "number"),
    ),
    Focus(
        "mood",
        lambda s: f"a {MOODS[s.emotion]} mood." if s.emotion in MOODS else None,
        said_in(r"a (?P<mood>[a-z]+) mood\.", "mood"),
    ),
    Focus(
        "brand voice",
        lambda s: f"wow! get your {s.objects[0]} and your {s.objects[1]} today!",
        said_in(
            r"wow! get your (?P<object1>[a-z ]+?) and your (?P<object2>[a-z ]+?) today!",
            "object1",
            "object2",
        ),
    ),
)


def scene_of(item: CaptionItem, judge: LexiconJudge) -> Scene:
    """Read what a scene shows from its references, objects in alphabetical order, and the colour of its corners."""
    named = judge.items(" ".join(item.of(None)))
    emotion, action = (next(iter(named[focus])) for focus in ("emotions", "actions"))
    pixels = np.asarray(Image.open(item.image).convert("RGB"), dtype=int)
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
    near = {name: int(np.abs(corners - colour).sum(1).max()) for name, colour in BACKGROUNDS.items()}
    nearest = min(near, key=near.__getitem__)
    return Scene(tuple(sorted(named["objects"])), emotion, action, nearest if near[nearest] <= COLOUR_DISTANCE else "")


def pairs_of(focus: Focus, items: tuple[CaptionItem, ...], judge: LexiconJudge) -> Iterator[tuple[CaptionItem, Scene]]:
    """Give the scenes that a focus has something to say of."""
    for item in items:
        scene = scene_of(item, judge)
        if focus.write(scene) is not None:
            yield item, scene


def write_pairs(focus: Focus, data: CaptionData, judge: LexiconJudge, folder: Path) -> Path:
    """Write a file of 50 pairs with their images, as a user would have it."""
    lines = []
    for item, scene in list(pairs_of(focus, data.train, judge))[:N_PAIRS]:
        name = f"{item.image.stem}.png"
        shutil.copyfile(item.image, folder / name)
        lines.append(json.dumps({"image": name, "captions": [focus.write(scene)], "focus": focus.name}))
    path = folder / "captions.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def measure(focus: Focus, captioner: FrozenCaptioner, features: CaptionFeatures, seed: int) -> dict[str, Any]:
    """Learn one focus as `caption train --method auto` does, and judge what is said of 60 test scenes."""
    data = mp.load_captions("openart-scenes")
    judge = LexiconJudge(data.lexicon)
    judged = list(pairs_of(focus, data.test, judge))[:N_JUDGED]
    seen = features.of([item.image for item, _ in judged])
    decoding = mp.captioning.Decoding(max_tokens=60)

    def say(guidance: Guidance) -> list[str]:
        return [caption.text for caption in mp.Captioner(captioner, guidance, decoding).caption_features(seen)]

    def n_right(captions: list[str]) -> int:
        return sum(focus.is_right(caption, scene) for caption, (_, scene) in zip(captions, judged, strict=True))

    with tempfile.TemporaryDirectory() as folder:
        pairs = mp.load_captions(write_pairs(focus, data, judge, Path(folder)))
        started = time.process_time()
        task = pairs.focus(focus.name, features)
        choice = choose_method(captioner, task, seed=seed, progress=False)
        result = mp.fit(choice.method, captioner, task, seed=seed, progress=False)
        seconds = time.process_time() - started
    words = [hard_prompt(captioner, focus.name, wording) for wording in wordings_for(focus.name)]
    wordings = [n_right(say(Guidance(((prompt, 1.0),) if prompt else ()))) for prompt in (None, *words)]
    said = say(result.predictor.guidance)
    return {
        "chosen": next(iter(choice.probabilities)),
        "probabilities": dict(choice.probabilities),
        "n_chosen_on": choice.n_images,
        "right": n_right(said),
        "wordings": wordings,
        "n_judged": len(judged),
        "seconds": round(seconds, 1),
        "notices": list(result.notices),
        "captions": said[:3],
    }


def page(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = []
    for name, row in found.items():
        n = row["n_judged"]
        alarm = "yes" if any("was not learned" in notice for notice in row["notices"]) else ""
        shares = [f"{100 * row['right'] / n:.0f}", f"{100 * max(row['wordings']) / n:.0f}"]
        rows.append([name, row["captions"][0], row["chosen"], *shares, alarm, f"{row['seconds']:.0f}"])
    return table(("focus", "says", "chosen", "right, %", "best words, %", "alarm", "seconds"), rows)


def main(
    focuses: tuple[str, ...] = tuple(focus.name for focus in FOCUSES),
    seed: int = 1,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Measure, print the table, write the figures; those of a focus that is not measured stay in the file."""
    found = json.loads(json_file.read_text("utf-8")) if json_file is not None and json_file.is_file() else {}
    captioner = mp.load_captioner("tiny", device="cpu")
    features = CaptionFeatures(captioner)
    for focus in FOCUSES:
        if focus.name in focuses:
            found[focus.name] = measure(focus, captioner, features, seed)
            print(json.dumps({focus.name: found[focus.name]}), flush=True)
            if json_file is not None:
                make_folder(json_file.parent)
                json_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(page({focus.name: found[focus.name] for focus in FOCUSES if focus.name in found}))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)

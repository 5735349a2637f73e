"""A focus of one's own from 50 caption pairs, on drawn scenes and on photographs, each judged by a rule.

    python scripts/measure_own_focus.py --photographs captions.jsonl --texts captions_val2017.json \
        --json docs/results/own_focus.json

None of the focuses is among what the captioners were trained on. Pairs and rules were written before anything was
trained on them. A caption is right if it has the focus's form, and all that it says is so: of a drawn scene, what was
drawn; of a photograph, what people named in one of its five captions. No pair of a photograph shows one: as in
`measure_photo_focus.py`, the things that a COCO caption names stand for its image.
"""

import json
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

import mmprompt as mp
from markdown import several, table
from measure_photo_focus import StandIns, scenes_of
from measuring import read_figures, run_main, write_figures
from mmprompt.captioning.choice import choose_method
from mmprompt.captioning.data import CaptionItem
from mmprompt.captioning.focus_sets import nouns
from mmprompt.captioning.measure import wordings_for
from mmprompt.captioning.metrics.judges import LexiconJudge
from mmprompt.captioning.predictor import CaptionFeatures, Guidance, hard_prompt
from mmprompt.captioning.readers.captioner import FrozenCaptioner
from mmprompt.captioning.task import FocusTask
from openart.words import BACKGROUNDS

N_PAIRS, N_JUDGED = 50, 60
ANIMALS = {"bee", "elephant", "octopus", "camel", "bird", "whale", "rooster", "shark"}
MOODS = {"happy": "good", "in love": "good", "sad": "bad", "angry": "bad", "scared": "bad", "sick": "bad"}
NUMBERS = ("no animal", "one animal", "two animals")
COLOUR_DISTANCE = 24
"""Of a background to a named colour, in units of 255 over three channels."""


@dataclass(frozen=True)
class Scene:
    """What an image shows: of a photograph the things alone that are named of it, of a drawn scene all that was drawn.

    The colour is that of the corners, "" where the background is not one.
    """

    objects: tuple[str, ...]
    emotion: str = ""
    action: str = ""
    colour: str = ""

    @property
    def number(self) -> str:
        """How many of the two objects are animals."""
        return NUMBERS[len(ANIMALS.intersection(self.objects))]

    @property
    def mood(self) -> str:
        """Whether the emotion is a good one; "" where it is neither."""
        return MOODS.get(self.emotion, "")


@dataclass(frozen=True)
class Focus:
    """What somebody writes of a scene, None where it has nothing to say of it, and the form of what is written."""

    name: str
    write: Callable[[Scene], str | None]
    form: str
    """Its groups are named after what they say of a scene; `object`, `object1` and `object2` are of its objects."""

    def has_form(self, caption: str) -> bool:
        """Whether a caption is wholly of the form."""
        return re.fullmatch(self.form, caption) is not None

    def is_right(self, caption: str, scene: Scene) -> bool:
        """Whether every part of it is what the scene shows, too, and no object is named twice."""
        found = re.fullmatch(self.form, caption)
        if found is None:
            return False
        said = found.groupdict()
        objects = [part for name, part in said.items() if name.startswith("object")]
        others = all(getattr(scene, name) == part for name, part in said.items() if not name.startswith("object"))
        return others and len(set(objects)) == len(objects) and set(objects) <= set(scene.objects)


SHORT = Focus("short", lambda s: f"{s.objects[0]}.", r"(?P<object>[a-z ]+)\.")
VOICE = Focus(
    "brand voice",
    lambda s: f"wow! get your {s.objects[0]} and your {s.objects[1]} today!",
    r"wow! get your (?P<object1>[a-z ]+?) and your (?P<object2>[a-z ]+?) today!",
)
DRAWN = (
    SHORT,
    Focus(
        "long",
        lambda s: (
            f"in this scene there are two things, the {s.objects[0]} and the {s.objects[1]}, while a person is "
            f"{s.action} and a face seems {s.emotion}."
        ),
        r"in this scene there are two things, the (?P<object1>[a-z ]+?) and the (?P<object2>[a-z ]+?), while a "
        r"person is (?P<action>[a-z ]+?) and a face seems (?P<emotion>[a-z ]+)\.",
    ),
    Focus(
        "colour",
        lambda s: f"the background is {s.colour}." if s.colour else None,
        r"the background is (?P<colour>[a-z]+)\.",
    ),
    Focus("count", lambda s: f"{s.number}.", r"(?P<number>[a-z ]+)\."),
    Focus("mood", lambda s: f"a {s.mood} mood." if s.mood else None, r"a (?P<mood>[a-z]+) mood\."),
    VOICE,
)
PHOTOGRAPHED = (
    SHORT,
    Focus(
        "long",
        lambda s: (
            f"in this photograph there are two things, the {s.objects[0]} and the {s.objects[1]}, and whoever took it "
            "wanted us to see both of them."
        ),
        r"in this photograph there are two things, the (?P<object1>[a-z ]+?) and the (?P<object2>[a-z ]+?), and "
        r"whoever took it wanted us to see both of them\.",
    ),
    VOICE,
)
"""Colour, count and mood of a photograph could not be judged by its captions."""


def scene_of(item: CaptionItem, judge: LexiconJudge) -> Scene:
    """Read what a scene shows from its references, objects in alphabetical order, and the colour of its corners."""
    named = judge.items(" ".join(item.of(None)))
    emotion, action = (next(iter(named[focus])) for focus in ("emotions", "actions"))
    pixels = np.asarray(Image.open(item.image).convert("RGB"), dtype=int)
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
    near = {name: int(np.abs(corners - colour).sum(1).max()) for name, colour in BACKGROUNDS.items()}
    nearest = min(near, key=near.__getitem__)
    return Scene(tuple(sorted(named["objects"])), emotion, action, nearest if near[nearest] <= COLOUR_DISTANCE else "")


def pairs_of(focus: Focus, items: Sequence[CaptionItem], judge: LexiconJudge) -> list[tuple[CaptionItem, Scene]]:
    """Give the scenes that a focus has something to say of."""
    scenes = ((item, scene_of(item, judge)) for item in items)
    return [(item, scene) for item, scene in scenes if focus.write(scene) is not None]


def write_pairs(focus: Focus, pairs: Sequence[tuple[CaptionItem, Scene]], folder: Path) -> Path:
    """Write a file of pairs with their images, as a user would have it."""
    lines = []
    for item, scene in pairs:
        name = f"{item.image.stem}.png"
        shutil.copyfile(item.image, folder / name)
        lines.append(
            json.dumps({"image": name, "captions": [focus.write(scene)], "focus": focus.name, "split": "train"})
        )
    path = folder / "captions.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@dataclass(frozen=True)
class Judged:
    """Images that a focus is judged on: their features [N, T, D'] and what they show."""

    captioner: FrozenCaptioner
    features: Tensor
    scenes: tuple[Scene, ...]

    def say(self, guidance: Guidance) -> list[str]:
        """Write a caption of each."""
        decoding = mp.captioning.Decoding(max_tokens=60)
        said = mp.Captioner(self.captioner, guidance, decoding).caption_features(self.features)
        return [caption.text for caption in said]

    def n_right(self, focus: Focus, captions: Sequence[str]) -> int:
        """Count those that are right."""
        return sum(focus.is_right(caption, scene) for caption, scene in zip(captions, self.scenes, strict=True))


def measure(focus: Focus, task: FocusTask, judged: Judged, seed: int) -> dict[str, Any]:
    """Learn one focus as `caption train --method auto` does, and judge what is said of other images."""
    captioner, started = judged.captioner, time.process_time()
    choice = choose_method(captioner, task, seed=seed, progress=False)
    result = mp.fit(choice.method, captioner, choice.task, seed=seed, progress=False)
    seconds = time.process_time() - started
    words = [hard_prompt(captioner, focus.name, wording) for wording in wordings_for(focus.name)]
    guidances = [Guidance(((prompt, 1.0),) if prompt else ()) for prompt in (None, *words)]
    wordings = [judged.n_right(focus, judged.say(guidance)) for guidance in guidances]
    said = judged.say(result.predictor.guidance)
    return {
        "seed": seed,
        "chosen": next(iter(choice.probabilities)),
        "probabilities": dict(choice.probabilities),
        "n_chosen_on": choice.n_images,
        "right": judged.n_right(focus, said),
        "in_form": sum(map(focus.has_form, said)),
        "wordings": max(wordings),
        "n_judged": len(judged.scenes),
        "seconds": round(seconds, 1),
        "notices": list(result.notices),
        "captions": said[:3],
    }


def on_drawn_scenes(focus: Focus, seed: int) -> dict[str, Any]:
    """Learn from 50 training scenes, as a file of one's own, and judge 60 test scenes."""
    captioner, data = mp.load_captioner("tiny", device="cpu"), mp.load_captions("openart-scenes")
    features, judge = CaptionFeatures(captioner), LexiconJudge(data.lexicon)
    shown = pairs_of(focus, data.test, judge)[:N_JUDGED]
    judged = Judged(captioner, features.of([item.image for item, _ in shown]), tuple(scene for _, scene in shown))
    learned = random.Random(seed).sample(pairs_of(focus, data.train, judge), N_PAIRS)
    with tempfile.TemporaryDirectory() as folder:
        pairs = mp.load_captions(write_pairs(focus, learned, Path(folder)))
        return measure(focus, pairs.focus(focus.name, features), judged, seed)


def on_photographs(focus: Focus, seed: int, photographs: Path, texts: Path) -> dict[str, Any]:
    """Learn from 50 COCO scenes without their images, and judge photographs."""
    captioner, scenes = mp.load_captioner("photo", device="cpu"), scenes_of(texts, seed=1)
    items = mp.load_captions(photographs).with_captions("test", None)
    shown = tuple(Scene(tuple(dict.fromkeys(nouns(" . ".join(item.of(None)))))) for item in items)
    judged = Judged(captioner, CaptionFeatures(captioner).of([item.image for item in items]), shown)
    named = [(item, tuple(dict.fromkeys(nouns(item.of(None)[0])))) for item in scenes.items]
    chosen = random.Random(seed).sample([(item, things) for item, things in named if len(things) > 1], N_PAIRS)
    pairs = []
    for item, things in chosen:
        text = focus.write(Scene(things))
        assert text is not None, "what is written of photographs names things alone"
        pairs.append(replace(item, captions={focus.name: (text,)}, split="train"))
    scenes = replace(scenes, items=tuple(item for item, _ in chosen))
    stand_ins = StandIns(scenes, mp.load_backbone("photo-small", device="cpu"), captioner)
    return measure(focus, FocusTask(replace(scenes, items=tuple(pairs)), focus.name, stand_ins), judged, seed)


def page(rows: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """The figures of one captioner as Markdown."""
    lines = []
    for name, seeds in rows.items():
        shares = [[row[key] / row["n_judged"] for row in seeds] for key in ("in_form", "right", "wordings")]
        alarms = sum(any("was not learned" in notice for notice in row["notices"]) for row in seeds)
        chosen = ", ".join(dict.fromkeys(row["chosen"] for row in seeds))
        seconds = sum(row["seconds"] for row in seeds) / len(seeds)
        alarm = f"{alarms} of {len(seeds)}" if alarms else ""
        lines.append([name, seeds[0]["captions"][0], chosen, *map(several, shares), alarm, f"{seconds:.0f}"])
    return table(("focus", "says", "chosen", "in form, %", "right, %", "best words, %", "alarm", "seconds"), lines)


def measured(captioner: str, name: str, seed: int, photographs: Path | None, texts: Path | None) -> dict[str, Any]:
    """Measure one focus on one captioner, in a process of its own."""
    torch.set_num_threads(1)
    if photographs is None or texts is None or captioner == "tiny":
        return on_drawn_scenes(next(focus for focus in DRAWN if focus.name == name), seed)
    return on_photographs(next(focus for focus in PHOTOGRAPHED if focus.name == name), seed, photographs, texts)


def main(
    photographs: Path | None = None,
    texts: Path | None = None,
    seeds: tuple[int, ...] = (1, 2),
    focuses: tuple[str, ...] = tuple(focus.name for focus in DRAWN),
    workers: int = 2,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Measure, print the tables, write the figures; those of what is not measured stay in the file.

    Args:
        photographs: a file of photographs with captions, to judge by; none without.
        texts: COCO's caption file, which is learned from.
        seeds: of the pairs and the trainings.
        focuses: those that are measured.
        workers: processes, of one thread each.
        json_file: where the figures go.
    """
    if (photographs is None) != (texts is None):
        raise mp.UserError(
            "photographs are judged after learning from texts, but one was given without the other. "
            "Give both `photographs` and `texts`, or neither."
        )
    sets = {"tiny": DRAWN} | ({} if photographs is None or texts is None else {"photo": PHOTOGRAPHED})
    each = [(captioner, focus.name) for captioner, some in sets.items() for focus in some if focus.name in focuses]
    asked = [(*one, seed) for seed in seeds for one in each]
    found: dict[str, dict[str, list[dict[str, Any]]]] = read_figures(json_file)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        waiting = [pool.submit(measured, *one, photographs, texts) for one in asked]
        for (captioner, name, seed), one in zip(asked, waiting, strict=True):
            rows = found.setdefault(captioner, {}).setdefault(name, [])
            others = [row for row in rows if row["seed"] != seed]
            rows[:] = sorted([*others, one.result()], key=lambda row: row["seed"])
            print(json.dumps({captioner: {name: one.result()}}), flush=True)
            if json_file is not None:
                write_figures(json_file, found)
    for captioner, rows in found.items():
        print(f"\n{captioner}\n\n{page(rows)}")


if __name__ == "__main__":
    run_main(main, __doc__)

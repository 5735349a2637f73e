"""A folder of your own pictures, one folder for each class: train on it, save the prompt, predict a new picture."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

import mmprompt as mp


def draw(shape: str, chance: random.Random) -> Image.Image:
    picture = Image.new("RGB", (96, 96), "white")
    x, y, size = chance.randrange(32), chance.randrange(32), chance.randrange(32, 64)
    pen = ImageDraw.Draw(picture)
    paint = pen.ellipse if shape == "ball" else pen.rectangle
    paint((x, y, x + size, y + size), fill=chance.choice(["red", "blue", "green", "black"]))
    return picture


chance = random.Random(1)
with tempfile.TemporaryDirectory() as folder:
    for shape in ("ball", "box"):
        for number in range(20):
            path = Path(folder, "pictures", shape, f"{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(shape, chance).save(path)
    data = mp.ImageFolder(Path(folder, "pictures"), shots=8, seed=1)
    result = mp.fit(mp.CoOp(n_ctx=4), "tiny", data, Path(folder, "run"), mp.Recipe(lr=0.02, epochs=10))
    print(f"test accuracy {result.evaluate(data.test).accuracy:.0%} of {len(data.test)} pictures")
    classifier = mp.load(Path(folder, "run"))  # kilobytes: the vectors, the class names and their features
    for shape in ("ball", "box"):
        print(f"a new {shape} is called a {classifier.predict(draw(shape, chance)).label}")

"""Two prompts behind one server, and a client of a few lines that asks both about one picture."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import mmprompt as mp


def ask(address: str, path: str, **content: object) -> list[dict[str, object]]:
    """Post prompts with images or texts; what is wrong comes back as HTTP 4xx with one line of JSON."""
    body = json.dumps(content).encode()
    request = urllib.request.Request(address + path, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)["answers"]


backbone = mp.load_backbone("tiny")
for name, template in {"large": "a large {}", "left": "a {} on the left"}.items():  # a trained run is served alike
    mp.save(mp.zero_shot(backbone, ["dog", "rocket", "banana"], template), Path("prompts") / name)

server = subprocess.Popen(
    [sys.executable, "-m", "mmprompt", "serve", "prompts", "--port", "0"], stdout=subprocess.PIPE, text=True
)
address = next(line.split()[1] for line in server.stdout if line.startswith("listening"))
scene = base64.b64encode(Path(__file__).with_name("scene.png").read_bytes()).decode()
for answer in ask(address, "/images", prompts=["large", "left"], images=[scene]):
    print(answer["prompt"], answer["label"], answer["probabilities"])
server.terminate()
server.wait()

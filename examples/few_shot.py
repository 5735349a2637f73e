"""Learn a prompt from four pictures of each class, test it beside zero-shot, and use it on one picture."""

from __future__ import annotations

from pathlib import Path

import mmprompt as mp

backbone = mp.load_backbone("tiny")
data = mp.load_dataset("openart-large", shots=4, seed=1)

result = mp.fit(mp.CoOp(n_ctx=4), backbone, data)
learned = result.evaluate(data.test)
prediction = result.predictor.predict(Path(__file__).with_name("scene.png"))

bare = mp.evaluate(mp.zero_shot(backbone, data.class_names, "{}"), data)
print(f"zero-shot {bare.accuracy:.1%}, learned {learned.accuracy:.1%} of {learned.n:,} test pictures")
print(f"scene.png: {prediction.label} ({prediction.probability:.0%})")

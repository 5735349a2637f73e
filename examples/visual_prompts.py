"""Visual prompt tokens in the image encoder and context vectors in the text encoder, learned together."""

from __future__ import annotations

import mmprompt as mp

backbone = mp.load_backbone("tiny")
data = mp.load_dataset("openart-large", shots=1, seed=1)

method = mp.CoOp(n_ctx=4) + mp.VPT(n_visual=4, depth=2)
result = mp.fit(method, backbone, data, recipe=mp.Recipe(lr=0.02, epochs=5))

for site, vectors in result.predictor.prompt.inserts().items():
    print(f"{site}: {tuple(vectors.values.shape)}")
print(f"test accuracy {result.evaluate(data.test[:200]).accuracy:.1%}")
assert backbone.compute_fingerprint() == backbone.fingerprint, "both encoders stay frozen"

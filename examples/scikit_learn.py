"""The scikit-learn estimator in cross-validation."""

from __future__ import annotations

from sklearn.model_selection import cross_val_score

import mmprompt as mp

data = mp.load_dataset("openart-large", shots=4, seed=1)
pictures = [item.path for item in data.train]
names = [data.class_names[item.label] for item in data.train]

recipe = mp.Recipe(lr=0.02, epochs=10, augment="none")
for n_ctx in (1, 4):
    scores = cross_val_score(mp.PromptClassifier("tiny", mp.CoOp(n_ctx=n_ctx), recipe), pictures, names, cv=2)
    print(f"{n_ctx} vectors: {scores.mean():.1%} ({', '.join(f'{score:.1%}' for score in scores)})")

"""Settings that suit a backbone better than the papers', which were chosen for CLIP.

Each was chosen on validation pictures; docs/embedded_default.md and docs/photographs.md say how.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

N_CTX = {"tiny": 4}
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "photo": {"optimizer": "adamw", "lr": 0.01, "batch_size": 256, "epochs": 100, "augment": "none"},
}


def suited_settings(backbone: str, method: type) -> dict[str, Any]:
    """What a method should start from on a backbone, empty where its own defaults suit.

    Args:
        backbone: its name.
        method: a class of methods.
    """
    return {"n_ctx": N_CTX[backbone]} if backbone in N_CTX and hasattr(method, "n_ctx") else {}


def suited_recipe(backbone: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe should start from: the backbone's own settings, else those of the data set.

    Args:
        backbone: its name.
        data: what the data set says of the recipe.
    """
    return dict(RECIPES.get(backbone, data))

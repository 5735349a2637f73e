"""A prompt of a language model as PEFT reads it; the files are those of `mmprompt llm convert`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmprompt.errors import UserError
from mmprompt.files import read_json
from mmprompt.language.peft import CONFIG
from mmprompt.language.peft_save import save_peft
from mmprompt.language.predictor import LanguagePredictor


def write_peft(prompted: LanguagePredictor, folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write PEFT's two files and what this package reads beside them.

    Vectors that do not stand before everything are written as the keys and values that the model makes of them and of
    what stands before them.

    Returns:
        PEFT's own name of the form, the template, and how to use it.
    Raises:
        UserError: PEFT has no such prompt.
    """
    try:
        save_peft(prompted, folder)
    except UserError as refusal:
        with contextlib.suppress(UserError):
            save_peft(prompted, folder, "prefix")
        if not (folder / CONFIG).is_file():
            raise refusal from None
    form = read_json(folder / CONFIG)["peft_type"]
    return {"peft_type": form, "template": prompted.template.text, "use": "PeftModel.from_pretrained(model, FOLDER)"}

"""Hand-written prompts: a sentence with one `{}` where the class name goes, and ensembles of them by name.

This file does not know which datasets use which sentence; their YAML says it.
"""

from __future__ import annotations

import importlib.util
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmprompt.errors import bad_value

ENSEMBLES = {
    "open_clip:OPENAI_IMAGENET_TEMPLATES": "OPENAI_IMAGENET_TEMPLATES",  # the 80 of CLIP's ImageNet notebook
    "open_clip:SIMPLE_IMAGENET_TEMPLATES": "SIMPLE_IMAGENET_TEMPLATES",  # the 7 that it selects
}


def check_template(template: str) -> str:
    """Return a template after checking it.

    Raises:
        UserError: it does not hold `{}` exactly once, or holds other braces.
    """
    if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
        expected = "exactly one {} is needed, where the class name goes"
        raise bad_value("template", repr(template), expected, 'Write "a photo of a {}."')
    return template


def check_templates(templates: Sequence[str]) -> None:
    """Refuse an ensemble with a member that is neither a sentence with one `{}` nor the name of an ensemble."""
    for template in templates:
        if template not in ENSEMBLES:
            check_template(template)


def expand_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Return the sentences of an ensemble, with those that are named looked up in open_clip.

    Raises:
        UserError: one is neither a sentence with one `{}` nor a known name.
    """
    check_templates(templates)
    sentences: list[str] = []
    for template in templates:
        if template in ENSEMBLES:
            sentences += [fill_in("{}") for fill_in in open_clip_lists()[ENSEMBLES[template]]]
        else:
            sentences.append(template)
    return tuple(sentences)


def open_clip_lists() -> dict[str, Any]:
    """Return open_clip's lists of class names and templates by name, without importing open_clip, which loads torch."""
    package = importlib.util.find_spec("open_clip")
    assert package is not None, "open_clip is a dependency"
    return runpy.run_path(str(Path(package.origin or "").with_name("zero_shot_metadata.py")))


def fill(template: str, class_name: str) -> str:
    """Put a class name into a template, as it is: braces in the name mean nothing.

    Raises:
        UserError: the template does not hold `{}` exactly once.
    """
    return check_template(template).replace("{}", class_name)

"""Hand-written prompts: a sentence with one `{}` where the class name goes, and ensembles of them by name.

This file does not know which datasets use which sentence; their YAML says it.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmprompt.errors import bad_value

ENSEMBLES = {
    "open_clip:OPENAI_IMAGENET_TEMPLATES": "OPENAI_IMAGENET_TEMPLATES",  # the 80 of CLIP's ImageNet notebook
    "open_clip:SIMPLE_IMAGENET_TEMPLATES": "SIMPLE_IMAGENET_TEMPLATES",  # the 7 that it selects
}


def check_template(template: str) -> str:
    """Give a template back after checking it.

    Raises:
        UserError: it does not hold `{}` exactly once, or holds other braces.
    """
    if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
        raise bad_value(
            "template",
            repr(template),
            "exactly one {} is needed, where the class name goes",
            'Write "a photo of a {}."',
        )
    return template


def check_templates(templates: Sequence[str]) -> None:
    """Check an ensemble: sentences with one `{}`, or the names of ensembles.

    Raises:
        UserError: one is neither.
    """
    for template in templates:
        if template not in ENSEMBLES:
            check_template(template)


def expand_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """The sentences of an ensemble, with those that are named looked up in open_clip.

    Raises:
        UserError: one is neither a sentence with one `{}` nor a known name.
    """
    check_templates(templates)
    if not any(template in ENSEMBLES for template in templates):
        return tuple(templates)
    from open_clip import zero_shot_metadata

    sentences: list[str] = []
    for template in templates:
        if template in ENSEMBLES:
            sentences += [fill_in("{}") for fill_in in getattr(zero_shot_metadata, ENSEMBLES[template])]
        else:
            sentences.append(template)
    return tuple(sentences)


def fill(template: str, class_name: str) -> str:
    """Put a class name into a template.

    Args:
        template: a sentence with one `{}`.
        class_name: put in as it is; braces in it mean nothing.
    Raises:
        UserError: the template does not hold `{}` exactly once.
    """
    return check_template(template).replace("{}", class_name)

"""Hand-written prompts: a sentence with one `{}` where the class name goes.

This file does not know which datasets use which sentence; their YAML says it.
"""

from __future__ import annotations

from mmprompt.errors import bad_value


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


def fill(template: str, class_name: str) -> str:
    """Put a class name into a template.

    Args:
        template: a sentence with one `{}`.
        class_name: put in as it is; braces in it mean nothing.
    Raises:
        UserError: the template does not hold `{}` exactly once.
    """
    return check_template(template).replace("{}", class_name)

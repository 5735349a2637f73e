"""METEOR and SPICE through pycocoevalcap, which runs them in Java: an extra that nothing else needs.

Where they cannot run, one line says why. They are never left out in silence.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence

from mmprompt.captioning.metrics.caption_metrics import tokenize
from mmprompt.errors import UserError, unknown_name

JAVA_METRICS = ("meteor", "spice")


def java_score(metric: str, captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> float:
    """The mean METEOR (Denkowski and Lavie 2014) or SPICE (Anderson et al. 2016) of captions.

    Args:
        metric: `meteor` or `spice`. At its first use SPICE downloads its parser; it needs Java 8 and 8 GB.
        captions: one of each image, by its id.
        references: one or more of each of these images.
    Returns:
        A number in 0..1.
    Raises:
        UserError: pycocoevalcap or Java is missing, or Java failed.
    """
    if metric not in JAVA_METRICS:
        raise unknown_name("metric in Java", metric, JAVA_METRICS)
    try:
        from pycocoevalcap.meteor.meteor import Meteor
        from pycocoevalcap.spice.spice import Spice
    except ImportError:
        raise UserError(
            f"{metric.upper()} is measured by pycocoevalcap, which is not installed. "
            "Run `pip install 'mmprompt[coco-metrics]'`, or leave it out."
        ) from None
    if shutil.which("java") is None:
        raise UserError(f"{metric.upper()} runs in Java, which was not found. Install Java, or leave {metric} out.")
    said = {image_id: [" ".join(tokenize(caption))] for image_id, caption in captions.items()}
    wanted = {image_id: [" ".join(tokenize(text)) for text in references[image_id]] for image_id in captions}
    try:
        mean, _ = {"meteor": Meteor, "spice": Spice}[metric]().compute_score(wanted, said)
    except Exception as error:  # a process that died shows as a broken pipe, an empty answer or a download that failed
        detail = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{metric.upper()} failed in Java ({detail}). Check the Java, or leave {metric} out.") from None
    return float(mean)

"""Sources for a language model alone: encoded vectors, those of several tasks, networks behind blocks; and its head.

What is learned is in units of the model's own numbers, and starts where it is told to: an encoder's last layer is zero
at first, so that a prompt of words is a prompt of words before the first step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmprompt.core.heads import HEADS, Head
from mmprompt.core.learned import Given, Inserts, Source
from mmprompt.core.sources import SOURCES, zero_linear
from mmprompt.errors import unknown_name
from mmprompt.models.decoder.inserts import output_of
from mmprompt.models.sites import LM_INPUT, Bottleneck, Site, Vectors


class EncodedVectors(Source):
    """Vectors that an encoder, an MLP of each or an LSTM over all before it, makes of learned ones; `start` is [P, D]
    (Liu et al. 2021, "GPT Understands, Too", section 3.2).
    """

    sites = (LM_INPUT,)
    start: Tensor

    def __init__(self, start: Tensor, unit: float, encoder: str, hidden: int) -> None:
        super().__init__()
        n_vectors, width = start.shape
        self.unit = unit
        self.register_buffer("start", start.detach().float())
        self.inputs = nn.Parameter(torch.randn(n_vectors, hidden))
        self.lstm = nn.LSTM(hidden, hidden // 2, 2, bidirectional=True) if encoder == "lstm" else nn.Identity()
        self.mlp = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), zero_linear(hidden, width))

    def forward(self, given: Given) -> Inserts:
        """Give the vectors as they are now, in the model's own size."""
        x = self.lstm(self.inputs)
        x = x[0] if isinstance(x, tuple) else x
        return {LM_INPUT: Vectors(self.start + self.unit * self.mlp(x))}


class MultitaskVectors(Source):
    """One prompt for all tasks, and for each of T tasks a matrix of rank R that it is multiplied with, number by number
    (Wang et al. 2023, "Multitask Prompt Tuning", section 3.1).
    """

    kind = "multitask"
    sites = (LM_INPUT,)
    unit: Tensor

    def __init__(self, tasks: Sequence[str], n_vectors: int, width: int, rank: int) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.register_buffer("unit", torch.ones(()))
        self.values = nn.Parameter(torch.zeros(n_vectors, width))
        self.columns = nn.Parameter(torch.zeros(len(tasks), n_vectors, rank))
        self.rows = nn.Parameter(torch.zeros(len(tasks), rank, width))

    @classmethod
    def of(
        cls, tasks: Sequence[str], shared: Tensor, columns: Tensor, rows: Tensor, unit: Tensor | None = None
    ) -> MultitaskVectors:
        """Make one of the shared prompt [P, D], columns [T, P, R], rows [T, R, D], and the size of a step."""
        source = cls(tasks, shared.shape[0], shared.shape[1], columns.shape[-1])
        with torch.no_grad():
            if unit is not None:
                source.unit = unit.detach().float()
            source.values.copy_(shared / source.unit.to(shared.device))
            source.columns.copy_(columns)
            source.rows.copy_(rows)
        return source

    @property
    def shared(self) -> Tensor:
        """The prompt [P, D] of all tasks."""
        return self.values * self.unit

    def settings(self) -> dict[str, Any]:
        """See `Source`."""
        n_vectors, width = self.values.shape
        return {"tasks": list(self.tasks), "n_vectors": n_vectors, "width": width, "rank": self.columns.shape[-1]}

    def forward(self, given: Given) -> Inserts:
        """Give the vectors of one task; those of all tasks where none is named."""
        if not given.task:
            return {LM_INPUT: Vectors(self.shared)}
        if given.task not in self.tasks:
            raise unknown_name("task", given.task, self.tasks)
        number = self.tasks.index(given.task)
        return {LM_INPUT: Vectors(self.shared * (self.columns[number] @ self.rows[number]))}


class Bottlenecks(Source):
    """Networks of `hidden` units behind blocks, given by sites and widths (Houlsby et al. 2019); they start as nothing.

    Their numbers are learned in a unit, as those of `LowRankTerms`.
    """

    kind = "bottlenecks"

    def __init__(self, places: Mapping[str, int], hidden: int, unit: float = 1.0) -> None:
        super().__init__()
        self.places, self.hidden, self.unit = dict(places), hidden, unit
        self.sites = tuple(Site.parse(place) for place in places)
        widths = list(places.values())
        self.down = nn.ParameterList(nn.Parameter(torch.zeros(hidden, width)) for width in widths)
        self.down_bias = nn.ParameterList(nn.Parameter(torch.zeros(hidden)) for _ in widths)
        self.up = nn.ParameterList(nn.Parameter(torch.zeros(width, hidden)) for width in widths)
        self.up_bias = nn.ParameterList(nn.Parameter(torch.zeros(width)) for width in widths)

    def start_from(self, generator: torch.Generator) -> Bottlenecks:
        """Draw the inner layers as torch draws linear ones; the outer ones stay zero."""
        for weight, bias in zip(self.down, self.down_bias, strict=True):
            bound = weight.shape[1] ** -0.5 / self.unit
            for part in (weight, bias):
                part.data.copy_(torch.empty(part.shape).uniform_(-bound, bound, generator=generator))
        return self

    def settings(self) -> dict[str, Any]:
        """See `Source`."""
        return {"places": self.places, "hidden": self.hidden, "unit": self.unit}

    def forward(self, given: Given) -> Inserts:
        """Give a network for each place."""
        parts = zip(self.sites, self.down, self.down_bias, self.up, self.up_bias, strict=True)
        return {site: Bottleneck(*(part * self.unit for part in own)) for site, *own in parts}


class LabelRows(Head):
    """A row of the output layer, which reads states of a width, for each label, in place of those of words
    (Hambardzumyan et al. 2021, "WARP", section 3.1); one number wider where a bias stands last, as in their code.
    """

    kind = "label-rows"
    unit: Tensor

    def __init__(self, n_labels: int, width: int) -> None:
        super().__init__()
        self.register_buffer("unit", torch.ones(()))
        self.values = nn.Parameter(torch.zeros(n_labels, width))

    @torch.no_grad()
    def start_from(self, rows: Tensor, unit: Tensor) -> LabelRows:
        """Start from rows [C, D or D + 1], learned in a unit."""
        self.unit.copy_(unit)
        self.values.copy_(rows.float() / self.unit)
        return self

    def settings(self) -> dict[str, Any]:
        """See `Head`."""
        return {"n_labels": self.values.shape[0], "width": self.values.shape[1]}

    @property
    def rows(self) -> Tensor:
        """The rows [C, D or D + 1] in the model's own size."""
        return self.values * self.unit

    def forward(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Compute logits [B, C] of states [B, D] that stand where image features do; a language model takes `rows`."""
        return output_of(self.rows, image_features)


SOURCES |= {"multitask": MultitaskVectors, "bottlenecks": Bottlenecks}
HEADS[LabelRows.kind] = LabelRows

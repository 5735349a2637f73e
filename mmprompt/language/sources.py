"""Sources of vectors for a language model: encoded ones, reparametrised prefixes, and those of several tasks.

What is learned is in units of the model's own numbers, and starts where it is told to: an encoder's last layer is
zero at first, so that a prompt of words is a prompt of words before the first step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mmprompt.core.prompt import SiteSources
from mmprompt.core.sources import FreeVectors
from mmprompt.errors import unknown_name
from mmprompt.models.sites import Site, Tower, Vectors

Encoder = Literal["mlp", "lstm"]
LM_INPUT = Site("lm")


class LanguageSources(SiteSources):
    """Learned vectors of a language model, the same for every task.

    Args:
        sources: the source of the vectors of each site; {} for a prompt in words.
    """

    tasks: tuple[str, ...] = ()
    """The tasks that have vectors of their own; () where one prompt serves all."""

    def vectors_of(self, task: str = "") -> dict[Site, Vectors]:
        """The vectors by site, for one task."""
        return self.vectors()


class EncodedVectors(nn.Module):
    """Vectors that an encoder makes of learned ones (Liu et al. 2021, "GPT Understands, Too", section 3.2).

    Args:
        start: [P, D], where learning starts.
        unit: the size of the vectors' numbers.
        encoder: an MLP of each vector, or a bidirectional LSTM over all and an MLP.
        hidden: width of the encoder.
    """

    start: Tensor

    def __init__(self, start: Tensor, unit: float, encoder: Encoder, hidden: int) -> None:
        super().__init__()
        n_vectors, width = start.shape
        self.unit = unit
        self.register_buffer("start", start.detach().float())
        self.inputs = nn.Parameter(torch.randn(n_vectors, hidden))
        self.lstm = nn.LSTM(hidden, hidden // 2, 2, bidirectional=True) if encoder == "lstm" else nn.Identity()
        self.mlp = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), zero_linear(hidden, width))

    def forward(self) -> Vectors:
        """The vectors as they are now, in the model's own size."""
        x = self.lstm(self.inputs)
        x = x[0] if isinstance(x, tuple) else x
        return Vectors(self.start + self.unit * self.mlp(x))


class PrefixSources(LanguageSources):
    """Keys and values of all blocks that one MLP makes (Li and Liang 2021, "Prefix-Tuning", section 4.3).

    Args:
        start: [M, 2 H D/H] of each block, where learning starts.
        units: [2 H D/H] of each block, the size of these numbers.
        hidden: width of the MLP.
    """

    start: Tensor
    units: Tensor

    def __init__(self, start: Sequence[Tensor], units: Sequence[Tensor], hidden: int) -> None:
        super().__init__({})
        n_vectors, width = start[0].shape
        self.sites = tuple(Site("lm.kv", layer) for layer in range(len(start)))
        self.register_buffer("start", torch.cat(list(start), dim=1).float())
        self.register_buffer("units", torch.cat(list(units)).float())
        self.inputs = nn.Parameter(torch.randn(n_vectors, hidden))
        self.mlp = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), zero_linear(hidden, width * len(start)))

    def vectors(self, tower: Tower | None = None) -> dict[Site, Vectors]:
        """The keys and values of all blocks; see `SiteSources.vectors`."""
        if tower not in (None, "lm.kv"):
            return {}
        values = self.start + self.units * self.mlp(self.inputs)
        parts = values.chunk(len(self.sites), dim=1)
        return {site: Vectors(part) for site, part in zip(self.sites, parts, strict=True)}


class MultitaskSources(LanguageSources):
    """One prompt for all tasks, and for each task a matrix of low rank that it is multiplied with, number by number
    (Wang et al. 2023, "Multitask Prompt Tuning", section 3.1).

    Args:
        shared: the source of the prompt [P, D] of all tasks.
        tasks: names of the tasks.
        columns: [T, P, R], rows: [T, R, D]; the matrix of a task is their product.
    """

    def __init__(self, shared: nn.Module, tasks: Sequence[str], columns: Tensor, rows: Tensor) -> None:
        super().__init__({LM_INPUT: shared})
        self.tasks = tuple(tasks)
        self.columns = nn.Parameter(columns.detach().clone().float())
        self.rows = nn.Parameter(rows.detach().clone().float())

    def vectors_of(self, task: str = "") -> dict[Site, Vectors]:
        """The vectors of one task.

        Raises:
            UserError: it is none of the tasks.
        """
        if task not in self.tasks:
            raise unknown_name("task", task, self.tasks)
        number = self.tasks.index(task)
        shared = self.vectors()[LM_INPUT].values
        return {LM_INPUT: Vectors(shared * (self.columns[number] @ self.rows[number]))}

    def tensors(self) -> dict[str, Tensor]:
        """As the prompt file holds them: the shared prompt, and the factors of all tasks."""
        return super().tensors() | {"task_columns": self.columns.detach(), "task_rows": self.rows.detach()}


def zero_linear(n_in: int, n_out: int) -> nn.Linear:
    """A linear layer that gives zeros before it learns."""
    layer = nn.Linear(n_in, n_out)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def read_multitask(
    sites: Mapping[Site, FreeVectors], tasks: Sequence[str], tensors: Mapping[str, Tensor]
) -> MultitaskSources:
    """The sources of several tasks, as `MultitaskSources.tensors` gave them."""
    shared = sites[LM_INPUT]
    device = shared.values.device
    columns, rows = tensors["task_columns"].to(device), tensors["task_rows"].to(device)
    return MultitaskSources(shared, tasks, columns, rows)

from __future__ import annotations

import torch
from torch import nn

from mmprompt.models.frozen import fingerprint


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_equal_weights_have_equal_fingerprints() -> None:
    assert fingerprint(small()) == fingerprint(small())


def test_one_changed_bit_changes_it() -> None:
    model = small()
    with torch.no_grad():
        model[0].weight[1, 2] = torch.nextafter(model[0].weight[1, 2], torch.tensor(9.0))
    assert fingerprint(model) != fingerprint(small())


def test_a_changed_buffer_changes_it() -> None:
    model = small()
    model[1].running_mean[0] = 1
    assert fingerprint(model) != fingerprint(small())


def test_dtype_and_shape_are_part_of_it() -> None:
    zeros = [nn.Embedding(2, 4, dtype=torch.float16), nn.Embedding(4, 2, dtype=torch.float16)]
    zeros.append(nn.Embedding(2, 4, dtype=torch.bfloat16))
    with torch.no_grad():
        for table in zeros:
            table.weight.zero_()
    assert len({fingerprint(table) for table in zeros}) == 3


def test_it_is_the_same_for_transposed_storage_and_in_half_precision() -> None:
    plain, strided = nn.Linear(3, 3, dtype=torch.bfloat16), nn.Linear(3, 3, dtype=torch.bfloat16)
    strided.weight = nn.Parameter(plain.weight.detach().T.contiguous().T)
    strided.bias = plain.bias
    assert not strided.weight.is_contiguous()
    assert fingerprint(plain) == fingerprint(strided)

"""Class features from a frozen text tower with vectors spliced in, without the work that changes nothing.

A causal tower read at its end token needs neither padding nor anything after that token, and classes that begin alike
begin with the same keys and values. So three shortcuts are exact there: only real tokens are computed, the common
beginning is run once (once per image where it depends on the image), and the last block is computed for the end token
alone. A bidirectional tower that masks its padding and averages the rest needs no padding either, and nothing more is
left out; one that attends to its padding is run at full length, except for the last block's one slot.
Either way, classes are taken in chunks and computed again in the backward pass when their activations would not fit in
memory. This module knows slots and vectors, not class names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mmprompt.errors import UserError, bad_value
from mmprompt.models.dual_encoder.forward.packed import KeyValue, PackedSlots, embed, pack, run_common, run_own, splice
from mmprompt.models.dual_encoder.forward.views import BlockView, TextView, adapted_blocks, moved_norm
from mmprompt.models.ranks import all_classes, own_classes
from mmprompt.models.recompute import recomputed
from mmprompt.models.sites import Insert, Site, TextSlots, Vectors, vectors_of, with_tensors

SAVED_WIDTHS = 16
"""Tensors of the tower's width that a block keeps per slot for the backward pass: a little above the most measured."""

CHUNK_BYTES = 2**28
"""On a CPU, classes are taken in chunks of about this size even if all would fit: smaller ones are quicker there."""


@dataclass(frozen=True)
class Shortcuts:
    """What is left out because it changes nothing. Each is on; the tests switch them off one by one.

    Args:
        real_tokens: no slot after the end token is computed, if the tower is causal and read there; one that averages
            its slots never has any.
        common_once: slots that all classes begin with are computed once, if padding is left out.
        end_only: the last block is computed for the pooled slot alone.
    """

    real_tokens: bool = True
    common_once: bool = True
    end_only: bool = True


def encode_slots(
    view: TextView,
    slots: TextSlots,
    inserts: Mapping[Site, Insert],
    memory_bytes: int,
    shortcuts: Shortcuts | None = None,
) -> Tensor:
    """Return raw class features of a text tower: [C, E], or [B, C, E] if some vectors are of scope `"sample"`.

    Args:
        view: the tower.
        slots: what stands where; on the tower's device. Padded to the context length where the tower needs it.
        inserts: for `text.input` the context vectors that `slots.ctx_index` names; for `text.layer[i]`
            vectors that replace the first of those slots at the input of block i (Khattak et al. 2023,
            "MaPLe", section 3.2). Those of scope `"sample"` (Zhou et al. 2022, "Conditional Prompt
            Learning") give features per image. What is learned inside blocks is put into them.
        memory_bytes: about what the activations kept for the backward pass may take; classes beyond that are
            computed again in the backward pass.
        shortcuts: for tests.
    """
    shortcuts = shortcuts or Shortcuts()
    if view.stops_at_end and (shortcuts.real_tokens or view.pooling == "mean"):
        pooled = encode_packed(view, slots, inserts, memory_bytes, shortcuts)
    else:
        pooled = encode_full(view, slots, inserts, memory_bytes, shortcuts)
    last = Site("text", part="final_norm")
    final_norm = moved_norm(view.final_norm, last, inserts.get(last), view.width)
    features = view.project(final_norm(pooled))  # [B or 1, C, E]
    n_images = count_images(vectors_of(inserts))
    return features[0] if n_images is None else features.expand(n_images, -1, -1)


def check_text_vectors(view: TextView, slots: TextSlots, vectors: Mapping[Site, Vectors]) -> None:
    """Refuse vectors that a text tower cannot take.

    Raises:
        UserError: there is no such layer, vectors have another width or belong to other classes or images, those at
            the input are more or fewer than there are slots for them, or deeper ones are more.
    """
    n_classes = slots.n_classes
    n_input = vectors[Site("text")].n_vectors if Site("text") in vectors else 0
    if n_input != slots.n_ctx:
        raise UserError(
            f"the template has slots for {slots.n_ctx} context vectors, but {n_input} were given. "
            "Build the prompt with a template that has one slot for each."
        )
    n_images = count_images(vectors)
    for site, given in vectors.items():
        if site.layer >= len(view.blocks):
            raise bad_value("site", site, f"this text tower has {len(view.blocks)} layers", "Use a smaller depth.")
        if given.n_vectors > slots.n_ctx:
            raise UserError(
                f"the template has slots for {slots.n_ctx} context vectors, but {given.n_vectors} for {site} were "
                "given. Give deeper layers as many as the input, or fewer."
            )
        first = {"shared": (), "class": (n_classes,), "sample": (n_images,)}[given.scope]
        if given.values.shape != (*first, given.n_vectors, view.width):
            raise UserError(
                f"the vectors of {site} are {given.scope} {list(given.values.shape)}, but this text tower and "
                f"{n_classes} classes take {given.scope} {[*first, given.n_vectors, view.width]}. Build the prompt for "
                "this backbone and these classes."
            )


def count_images(vectors: Mapping[Site, Vectors]) -> int | None:
    """Return B where vectors belong to images, else None."""
    return next((len(given.values) for given in vectors.values() if given.scope == "sample"), None)


def encode_packed(
    view: TextView, slots: TextSlots, inserts: Mapping[Site, Insert], memory_bytes: int, shortcuts: Shortcuts
) -> Tensor:
    """Return the pooled slots [B or 1, C, D] after the last block of a tower that needs no padding."""
    order = slots.lengths.argsort(stable=True)  # classes of equal length side by side
    lengths = slots.lengths[order].tolist()
    vectors = vectors_of(inserts)
    is_shared = all(given.scope != "class" for given in vectors.values())
    n_common = common_length(slots, is_shared) if shortcuts.common_once and view.is_causal else 0
    common: list[KeyValue] = []
    if n_common:
        first = pack(slots, order[:1], range(n_common), lengths[:1])
        common = run_common(adapted(view, inserts), first, vectors)

    def run(chunk: slice, tensors: Sequence[Tensor]) -> Tensor:
        own = pack(slots, order[chunk], range(n_common, lengths[-1]), lengths[chunk])
        rest = iter(tensors)
        now = with_tensors(inserts, rest)
        keys_values: Sequence[KeyValue | None] = list(zip(rest, rest, strict=True)) or [None] * len(view.blocks)
        return run_own(adapted(view, now), own, vectors_of(now), keys_values, shortcuts.end_only)

    costs = [(length - n_common) * slot_bytes(view, length, vectors) for length in lengths]
    tensors = tensors_of(inserts) + [part for pair in common for part in pair]
    divide = run_divided if count_images(vectors) is None else run_chunks
    pooled = divide(run, tensors, costs, memory_bytes, slots.lengths.device)
    return pooled[:, order.argsort()]


def common_length(slots: TextSlots, shared: bool) -> int:
    """Count the leading slots that are the same for every class; at least one slot of each class is left out.

    Where the vectors are not shared over classes, a context slot ends the common part.
    """
    same = (slots.token_ids == slots.token_ids[:1]) & (slots.ctx_index == slots.ctx_index[:1])
    if not shared:
        same &= slots.ctx_index < 0
    leading = int(same.all(0).int().cumprod(0).sum())
    return min(leading, int(slots.lengths.min()) - 1)


def encode_full(
    view: TextView, slots: TextSlots, inserts: Mapping[Site, Insert], memory_bytes: int, shortcuts: Shortcuts
) -> Tensor:
    """Return the pooled slots [B or 1, C, D] of any tower after the last block, every slot computed."""
    n_classes, length = slots.token_ids.shape
    classes = torch.arange(n_classes, device=slots.token_ids.device)
    pooled = slots.lengths - 1 if view.pooling == "eos" else torch.full_like(slots.lengths, length - 1)

    def run(chunk: slice, tensors: Sequence[Tensor]) -> Tensor:
        every = pack(slots, classes[chunk], range(length), [length] * len(classes[chunk]))
        now = with_tensors(inserts, iter(tensors))
        return run_full(adapted(view, now), every, vectors_of(now), pooled[chunk], shortcuts.end_only)

    costs = [length * slot_bytes(view, length, vectors_of(inserts))] * n_classes
    divide = run_divided if count_images(vectors_of(inserts)) is None else run_chunks
    return divide(run, tensors_of(inserts), costs, memory_bytes, slots.lengths.device)


def tensors_of(inserts: Mapping[Site, Insert]) -> list[Tensor]:
    """List all tensors of the inserts that a gradient may be wanted of, in the order `with_tensors` takes them."""
    return [tensor for insert in inserts.values() for tensor in insert.tensors]


def adapted(view: TextView, inserts: Mapping[Site, Insert]) -> TextView:
    """Put what is learned inside the blocks of the tower, and at the norm before them, into those."""
    first = Site("text", part="pre_norm")
    pre_norm = moved_norm(view.pre_norm, first, inserts.get(first), view.width)
    return replace(view, blocks=adapted_blocks("text", view.blocks, view.width, inserts), pre_norm=pre_norm)


def run_full(
    view: TextView, every: PackedSlots, vectors: Mapping[Site, Vectors], pooled: Tensor, end_only: bool
) -> Tensor:
    """Run the blocks over every slot of C' classes, equally many each; return the slots `pooled` [C']: [B or 1, C', D].

    With `end_only` the last block is computed for those slots alone.
    """
    length = every.lengths[0]
    x = embed(view, every, vectors.get(Site("text")))  # [B or 1, C' L, D]
    for layer, block in enumerate(view.blocks):
        x = splice(x, every, vectors.get(Site("text", layer)) if layer else None)
        rows = x.reshape(-1, length, x.shape[-1])  # [B C', L, D]
        if end_only and layer == len(view.blocks) - 1 and isinstance(block, BlockView):
            return run_pooled(block, rows, pooled.repeat(len(x)), view.is_causal).unflatten(0, (len(x), -1))
        x = block.whole(rows, view.is_causal).reshape(x.shape)
    places = torch.arange(len(pooled), device=pooled.device) * length + pooled
    return x[:, places]


def run_pooled(block: BlockView, x: Tensor, pooled: Tensor, is_causal: bool) -> Tensor:
    """Run one block over [N, L, D], for the slot `pooled` [N] of each row alone: [N, D]."""
    rows = torch.arange(len(x), device=x.device)
    normed = block.entering(x)
    key, value = (block.split_heads(part) for part in block.key_value(normed))
    query = block.split_heads(block.query(normed[rows, pooled][:, None]))  # [N, H, 1, D/H]
    seen = torch.arange(x.shape[1], device=x.device) <= pooled[:, None, None, None] if is_causal else None
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    return block.finish(x[rows, pooled], block.join_heads(attended)[:, 0])


def slot_bytes(view: TextView, length: int, vectors: Mapping[Site, Vectors]) -> int:
    """Estimate what one slot of a text of some length keeps for the backward pass, over all blocks and images."""
    width, block = view.width, view.blocks[0]
    scores = block.n_heads * length if isinstance(block, BlockView) else 0
    n_images = count_images(vectors) or 1
    return n_images * len(view.blocks) * (SAVED_WIDTHS * width + scores) * view.position.element_size()


def run_chunks(
    run: Callable[[slice, Sequence[Tensor]], Tensor],
    tensors: Sequence[Tensor],
    costs: Sequence[int],
    memory_bytes: int,
    device: torch.device,
) -> Tensor:
    """Run over all classes in chunks; what cannot be kept is run again in the backward pass.

    Args:
        run: the features [B or 1, C', D] of a slice of the classes, from the tensors.
        tensors: all that a gradient may be wanted of.
        costs: bytes of each class.
        memory_bytes: what chunks may cost together without being run again.
        device: of the tower.
    """
    limit = memory_bytes if sum(costs) <= memory_bytes else memory_bytes // 4
    chunks = list(split_costs(costs, min(limit, CHUNK_BYTES) if device.type == "cpu" else limit))
    if len(chunks) == 1:
        return run(chunks[0], tensors)
    # The backward pass begins with the last chunk, so the last ones are kept and make room for the others.
    is_kept = [sum(costs[chunk.start :]) <= memory_bytes for chunk in chunks]
    pieces = [partial(run, chunk) for chunk in chunks]
    found = [run(tensors) if kept else recomputed(run, tensors) for run, kept in zip(pieces, is_kept, strict=True)]
    return torch.cat(found, dim=1)


def run_divided(
    run: Callable[[slice, Sequence[Tensor]], Tensor],
    tensors: Sequence[Tensor],
    costs: Sequence[int],
    memory_bytes: int,
    device: torch.device,
) -> Tensor:
    """Run over this process's share of the classes, and put those of all processes together; see `run_chunks`."""
    own = own_classes(costs)
    if own is None:
        return run_chunks(run, tensors, costs, memory_bytes, device)

    def run_own_part(chunk: slice, tensors: Sequence[Tensor]) -> Tensor:
        return run(slice(own.start + chunk.start, own.start + chunk.stop), tensors)

    return all_classes(run_chunks(run_own_part, tensors, costs[own], memory_bytes, device), own, len(costs))


def split_costs(costs: Sequence[int], limit: int) -> Iterator[slice]:
    """Yield slices of at least one item each whose costs stay within a limit together."""
    start, total = 0, 0
    for place, cost in enumerate(costs):
        if place > start and total + cost > limit:
            yield slice(start, place)
            start, total = place, 0
        total += cost
    yield slice(start, len(costs))

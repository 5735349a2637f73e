"""The text forward against plain full-length references, for every family: features, logits, loss, gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor
from transformers import BertConfig, RobertaConfig

from mmprompt.classification.template import ClassTemplate
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.encoder import FrozenDualEncoder
from mmprompt.models.dual_encoder.forward.text import (
    Shortcuts,
    common_length,
    encode_slots,
    run_chunks,
    slot_bytes,
    split_costs,
)
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.models.dual_encoder.open_clip import read_text
from mmprompt.models.sites import Scope, Site, Vectors
from tests import small_models
from tests.reference import plain_text

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
NAMES = ["cat", "a red dog house", "bird", "blue car"]
N_IMAGES = 2
ROOMY = {"context_length": 32, "layers": 3}
NORMS_AND_SCALES = {
    "qk_norm": True,
    "scale_heads": True,
    "scale_attn_inner": True,
    "scale_attn": True,
    "scale_fc": True,
}
OPEN_CLIP_FORMS: dict[str, dict[str, Any]] = {
    "open_clip": {},
    "quick_gelu": {"quick_gelu": True},
    "layer_scale": {"text": {"ls_init_value": 0.5}},
    "norms_and_scales": {"text": NORMS_AND_SCALES},
    "custom_text": {"custom_text": True, "text": {"proj_bias": True}},
    "bidirectional": {"custom_text": True, "text": {"no_causal_mask": True}},
    "causal_last": {"custom_text": True, "text": {"pool_type": "last"}},
    "open_clip_siglip": {
        "custom_text": True,
        "text": {"pool_type": "last", "no_causal_mask": True, "proj_bias": True},
        "save_tokenizer": small_models.save_siglip_tokenizer,
        "init_logit_bias": -3.0,
    },
}
BERT_FORMS: dict[str, Any] = {"bert": (BertConfig, 32), "roberta": (RobertaConfig, 34)}  # with the positions
FAMILIES = [*OPEN_CLIP_FORMS, *BERT_FORMS, "hf_clip", "siglip", "tiny"]


@dataclass(frozen=True)
class Case:
    """Where vectors stand: the position of the name, and the scope of the vectors of each layer that has some."""

    scopes: dict[int, Scope]
    position: str = "end"
    n_ctx: int = 3
    template: str = "{}."
    n_deep: int | None = None

    @property
    def whole_template(self) -> ClassTemplate:
        """The words of `template` with the vectors in front of them, about the name, or behind it."""
        before, after = self.template.split("{}")
        front = f"{{soft*{self.n_ctx // 2}}} " if self.n_ctx > 1 else ""
        forms = {
            "end": f"{{soft*{self.n_ctx}}} {before}{{name}}{after}",
            "middle": f"{front}{before}{{name}} {{soft*{self.n_ctx - self.n_ctx // 2}}}{after}",
            "front": f"{before}{{name}} {{soft*{self.n_ctx}}}{after}",
        }
        return ClassTemplate(forms[self.position] if self.n_ctx else self.template)


CASES = {
    "shared": Case({0: "shared"}),
    "shared in the middle": Case({0: "shared"}, "middle"),
    "shared behind": Case({0: "shared"}, "front"),
    "per class": Case({0: "class"}),
    "per class in the middle": Case({0: "class"}, "middle"),
    "per image": Case({0: "sample"}),
    "per image in the middle": Case({0: "sample"}, "middle"),
    "deep": Case({0: "shared", 1: "shared"}),
    "deep, fewer": Case({0: "shared", 1: "shared"}, "middle", n_deep=2),
    "deep alone": Case({1: "shared"}),
    "deep per class": Case({0: "shared", 1: "class"}),
    "deep below vectors per image": Case({0: "shared", 1: "sample"}),
    "vectors and words": Case({0: "shared"}, template="a photo of the {}."),
    "words": Case({}, n_ctx=0, template="a photo of a {}."),
}


def load(family: str, place: Path, dtype: str) -> FrozenDualEncoder:
    if family == "tiny":
        folder: Path | str = "tiny"
    elif family == "hf_clip":
        folder = small_models.save_hf_clip(place, max_position_embeddings=32, num_hidden_layers=3)
    elif family == "siglip":
        folder = small_models.save_siglip(place, text={"max_position_embeddings": 32, "num_hidden_layers": 3})
    elif family in BERT_FORMS:
        config, n_positions = BERT_FORMS[family]
        settings = {"num_hidden_layers": 3, "max_position_embeddings": n_positions, "hidden_act": "gelu"}
        folder = small_models.save_bert(place, config, **settings)
    else:
        form = OPEN_CLIP_FORMS[family]
        folder = small_models.save_open_clip(place, **{**form, "text": ROOMY | form.get("text", {})})
    return load_backbone(str(folder), device="cpu", dtype=dtype)


@pytest.fixture(scope="module", params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, model_folder: Path, dtype: str) -> FrozenDualEncoder:
    return load(request.param, model_folder / f"text_forward_{request.param}", dtype)


@pytest.fixture(scope="module")
def roomy(model_folder: Path) -> FrozenDualEncoder:
    """open_clip's form of CLIP with 32 slots and three layers, in double precision."""
    return load("open_clip", model_folder / "text_forward_roomy", "float64")


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def draw_vectors(backbone: FrozenDualEncoder, case: Case, n_classes: int) -> dict[Site, Vectors]:
    first = {"shared": (), "class": (n_classes,), "sample": (N_IMAGES,)}
    found = {}
    for layer, scope in case.scopes.items():
        n_vectors = case.n_deep if layer and case.n_deep is not None else case.n_ctx
        values = draw(*first[scope], n_vectors, backbone.text_width, dtype=backbone.dtype, seed=layer)
        found[Site("text", layer)] = Vectors(values.requires_grad_(), scope)
    return found


def reference_rows(backbone: FrozenDualEncoder, case: Case, names: list[str]) -> tuple[list[list[int]], list[int]]:
    """The full-length rows of the reference, built without the package's slots."""
    view, rows, ends = backbone.text, [], []
    before, after = case.template.split("{}")
    for name in names:
        words, n_name = backbone.tokenize(before + name + after), len(backbone.tokenize(before + name))
        frame = (view.frame.start_id, view.frame.end_id, view.frame.pad_id, view.context_length)
        row, end = plain_text.ids_with_context(words, n_name, case.n_ctx, case.position, *frame)
        rows.append(row)
        ends.append(end)
    return rows, ends


def reference_features(
    backbone: FrozenDualEncoder, case: Case, names: list[str], vectors: dict[Site, Vectors]
) -> Tensor:
    """[C, E], or [B, C, E] where vectors belong to images: one image after another."""
    plain: Callable = plain_text.open_clip_features
    if hasattr(backbone.model, "text_model"):
        plain = plain_text.transformers_features
    elif hasattr(getattr(backbone.model, "text", None), "pooler"):
        plain = plain_text.bert_features
    rows = reference_rows(backbone, case, names)

    def of_image(image: int) -> Tensor:
        values = {s.layer: v.values[image] if v.scope == "sample" else v.values for s, v in vectors.items()}
        filler = torch.zeros(case.n_ctx, backbone.text_width, dtype=backbone.dtype)
        deep = {layer: given for layer, given in values.items() if layer}
        if 0 not in values:  # slots that only deeper vectors fill hold the padding token until then
            filler = backbone.token_vectors(torch.tensor([backbone.text.frame.pad_id])).expand_as(filler)
        return plain(backbone.model, *rows, values.get(0, filler), deep)

    if any(given.scope == "sample" for given in vectors.values()):
        return torch.stack([of_image(image) for image in range(N_IMAGES)])
    return of_image(0)


def step(backbone: FrozenDualEncoder, features: Tensor, leaves: list[Tensor]) -> dict[str, Tensor]:
    """Logits and cross entropy of random images, and the gradient of every leaf."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(N_IMAGES, features.shape[-1], generator=generator, dtype=torch.float64).to(features.dtype)
    images = images / images.norm(dim=-1, keepdim=True)
    logits = backbone.logit_scale * (features @ images[:, :, None])[..., 0] + backbone.logit_bias  # [B, C]
    labels = torch.arange(N_IMAGES) % features.shape[-2]
    has_choice = features.shape[-2] > 1  # else the cross entropy is zero whatever the logits
    loss = torch.nn.functional.cross_entropy(logits, labels) if has_choice else logits.norm()
    found = {"features": features, "logits": logits, "loss": loss}
    if leaves:
        gradients = torch.autograd.grad(loss, leaves)
        found |= {f"gradient {number}": gradient for number, gradient in enumerate(gradients)}
    return found


def assert_plain(
    backbone: FrozenDualEncoder,
    case: Case,
    names: list[str],
    memory_bytes: int = 2**30,
    shortcuts: Shortcuts | None = None,
    slack: float = 1.0,
) -> None:
    """Everything that a step gives is what the plain forward gives, to the tolerance of the dtype times `slack`."""
    vectors = draw_vectors(backbone, case, len(names))
    leaves = [given.values for given in vectors.values()]
    slots = case.whole_template.slots(backbone, names)
    raw = encode_slots(backbone.text, slots, vectors, memory_bytes, shortcuts)
    found = step(backbone, torch.nn.functional.normalize(raw, dim=-1), leaves)
    expected = step(backbone, reference_features(backbone, case, names, vectors), leaves)
    for name, value in expected.items():
        error = (found[name] - value).norm() / value.norm()
        assert error < slack * TOLERANCE[backbone.dtype], f"{name}: {error:.1e}"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_step_is_the_plain_full_length_one(family: FrozenDualEncoder, case: Case) -> None:
    assert_plain(family, case, NAMES)


@pytest.mark.parametrize("off", ["real_tokens", "common_once", "end_only"])
@pytest.mark.parametrize("case", ["deep", "per class in the middle", "per image"])
def test_each_shortcut_can_be_switched_off_and_changes_nothing(family: FrozenDualEncoder, case: str, off: str) -> None:
    assert_plain(family, CASES[case], NAMES, shortcuts=Shortcuts(**{off: False}))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_classes_in_chunks_change_nothing(family: FrozenDualEncoder, case: Case) -> None:
    assert_plain(family, case, NAMES, memory_bytes=1)


@st.composite
def cases(draw_one: st.DrawFn, backbone: FrozenDualEncoder) -> tuple[Case, list[str]]:
    """Any case that fits the tower's slots, with names from one token to the limit."""
    n_ctx = draw_one(st.integers(0, 16))
    template = draw_one(st.sampled_from(["{}.", "{}", "a photo of a {}.", "the {} house"]))
    n_frame = 1 if backbone.text.frame.start_id is None else 2
    longest = backbone.context_length - n_frame - n_ctx - len(backbone.tokenize(template.replace("{}", "")))
    lengths = draw_one(st.lists(st.integers(1, longest) | st.just(longest), min_size=1, max_size=6))
    words = ["cat", "dog", "bird", "tree", "car", "fish"]
    names = [" ".join([word] * length) for word, length in zip(words, lengths, strict=False)]
    scope = st.sampled_from(["shared", "class", "sample"])
    scopes = draw_one(st.dictionaries(st.integers(0, 2), scope)) if n_ctx else {}
    n_deep = draw_one(st.integers(1, n_ctx)) if n_ctx else None
    return Case(scopes, draw_one(st.sampled_from(["end", "middle", "front"])), n_ctx, template, n_deep), names


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from([1, 2**18, 2**30]), st.builds(Shortcuts, st.booleans(), st.booleans(), st.booleans()))
def test_any_prompt_and_names_give_the_plain_step(
    family: FrozenDualEncoder, data: st.DataObject, memory_bytes: int, shortcuts: Shortcuts
) -> None:
    case, names = data.draw(cases(family))
    # many draws find the worst rounding, and it differs between processors
    assert_plain(family, case, names, memory_bytes, shortcuts, slack=10)


class PostNormBlock(ResidualAttentionBlock):
    """A block that no view describes: norms after the residual sums."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        x = self.ln_1(x + self.attention(x, attn_mask=attn_mask))
        return self.ln_2(x + self.mlp(x))


@pytest.mark.parametrize("case", ["shared", "per image in the middle", "deep per class"])
@pytest.mark.parametrize("memory_bytes", [1, 2**30])
def test_blocks_that_no_view_describes_are_run_whole(model_folder: Path, case: str, memory_bytes: int) -> None:
    backbone = load("open_clip", model_folder / "text_forward_whole", "float64")
    backbone.model.transformer.resblocks[1].__class__ = PostNormBlock  # one of three is enough
    backbone.text = read_text(backbone.model, backbone._tokenizer)
    assert backbone.text.block_views == ()
    assert_plain(backbone, CASES[case], NAMES, memory_bytes)


def test_shared_context_runs_once_for_all_classes(roomy: FrozenDualEncoder) -> None:
    slots = ClassTemplate.of_context(4).slots(roomy, ["cat", "dog", "bird"])
    assert common_length(slots, shared=True) == 1 + 4


def test_class_specific_context_ends_the_common_slots(roomy: FrozenDualEncoder) -> None:
    slots = ClassTemplate.of_context(4).slots(roomy, ["cat", "dog", "bird"])
    assert common_length(slots, shared=False) == 1


def test_words_that_all_classes_begin_with_are_common_too(roomy: FrozenDualEncoder) -> None:
    slots = ClassTemplate("a dog {}.").slots(roomy, ["cat", "bird"])
    assert common_length(slots, shared=True) == 1 + len(roomy.tokenize("a dog"))


def test_every_class_keeps_a_slot_of_its_own(roomy: FrozenDualEncoder) -> None:
    slots = ClassTemplate.of_context(2).slots(roomy, ["cat"])
    assert common_length(slots, shared=True) == int(slots.lengths[0]) - 1


def rows_through_blocks(backbone: FrozenDualEncoder, case: Case, names: list[str]) -> list[int]:
    """How many slots the feed-forward part of each block sees in one forward."""
    seen: dict[int, int] = {}
    blocks = backbone.model.transformer.resblocks
    hooks = [
        block.mlp.c_fc.register_forward_hook(
            lambda module, inputs, output, n=number: seen.update({n: seen.get(n, 0) + output.shape[:-1].numel()})
        )
        for number, block in enumerate(blocks)
    ]
    slots = case.whole_template.slots(backbone, names)
    backbone.encode_text(slots, draw_vectors(backbone, case, len(names)))
    for hook in hooks:
        hook.remove()
    return [seen[number] for number in range(len(blocks))]


def test_only_real_tokens_reach_the_blocks_and_end_tokens_alone_the_last(roomy: FrozenDualEncoder) -> None:
    own = [3, 6, 3, 4]  # words, full stop, end
    assert rows_through_blocks(roomy, Case({0: "shared"}, n_ctx=4), NAMES) == [5 + sum(own), 5 + sum(own), 4]


def test_a_context_of_the_image_runs_once_per_image_and_names_alone_in_the_first_block_once(
    roomy: FrozenDualEncoder,
) -> None:
    own, images = 16, N_IMAGES
    rows = rows_through_blocks(roomy, Case({0: "sample"}, n_ctx=4), NAMES)
    assert rows == [images * (5 + own), images * (5 + own), images * 4]


def test_slots_without_vectors_keep_no_graph_before_they_see_some(roomy: FrozenDualEncoder) -> None:
    """The queries of names in the first block depend on nothing that learns."""
    grads: list[bool] = []
    block = roomy.model.transformer.resblocks[0]
    hook = block.ln_1.register_forward_hook(lambda module, inputs, output: grads.append(output.requires_grad))
    slots = ClassTemplate.of_context(4).slots(roomy, NAMES)
    roomy.encode_text(slots, draw_vectors(roomy, Case({0: "shared"}, n_ctx=4), 4))
    hook.remove()
    assert grads == [True, False]  # the common slots, the names


def kept_bytes(backbone: FrozenDualEncoder, case: Case, names: list[str], memory_bytes: int) -> int:
    """What one forward keeps for its backward pass, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in backbone.model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    slots = case.whole_template.slots(backbone, names)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        encode_slots(backbone.text, slots, draw_vectors(backbone, case, len(names)), memory_bytes)
    return sum(kept[place].untyped_storage().nbytes() for place in kept.keys() - weights)


LONG_NAMES = [f"{a} {b} cat" for a in small_models.WORDS for b in ("red", "blue", "happy", "sad")]


def test_a_limit_is_kept_and_used(roomy: FrozenDualEncoder) -> None:
    whole, least = (kept_bytes(roomy, CASES["shared"], LONG_NAMES, limit) for limit in (2**40, 1))
    limit = whole // 2
    kept = kept_bytes(roomy, CASES["shared"], LONG_NAMES, limit)
    assert least < 0.1 * whole  # the common slots, and what each class starts from
    assert 0.3 * limit < kept - least < limit


def graph_nodes(tensor: Tensor) -> int:
    """How many steps autograd remembers."""
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return len(seen)


def test_a_chunk_that_is_run_again_leaves_one_node(roomy: FrozenDualEncoder) -> None:
    found = []
    for names in (LONG_NAMES[:10], LONG_NAMES[:30]):
        slots = ClassTemplate.of_context(3).slots(roomy, names)
        vectors = draw_vectors(roomy, CASES["shared"], len(names))
        found.append(graph_nodes(encode_slots(roomy.text, slots, vectors, memory_bytes=1)))
    assert found[1] - found[0] == 20


def test_classes_that_are_kept_are_the_last_ones() -> None:
    """Their backward pass comes first and makes room for the others."""
    runs: list[int] = []

    def run(chunk: slice, tensors: Sequence[Tensor]) -> Tensor:
        runs.append(chunk.start)
        return tensors[0][:, chunk].square()

    leaf = torch.ones(1, 3, 2, requires_grad=True)
    features = run_chunks(run, [leaf], [2, 2, 2], memory_bytes=3, device=torch.device("cpu"))
    torch.autograd.grad(features.sum(), leaf)
    assert runs == [0, 1, 2, 1, 0]


@pytest.mark.parametrize("case", ["shared", "per class", "per image"])
def test_the_estimate_of_a_step_is_not_below_what_it_keeps(family: FrozenDualEncoder, case: str) -> None:
    vectors = draw_vectors(family, CASES[case], len(LONG_NAMES))
    slots = ClassTemplate.of_context(3).slots(family, LONG_NAMES)
    n_common = 4 if case != "per class" and family.text.stops_at_end else 0
    lengths = slots.lengths.tolist() if family.text.stops_at_end else [family.context_length] * len(LONG_NAMES)
    estimate = sum((length - n_common) * slot_bytes(family.text, length, vectors) for length in lengths)
    kept = kept_bytes(family, CASES[case], LONG_NAMES, 2**40)
    assert kept < estimate < 4 * kept


def test_costs_are_split_within_the_limit_and_a_class_alone_may_exceed_it() -> None:
    chunks = list(split_costs([1, 2, 3, 9, 1], limit=4))
    assert [(chunk.start, chunk.stop) for chunk in chunks] == [(0, 2), (2, 3), (3, 4), (4, 5)]


def test_the_memory_limit_is_the_backbone_s(roomy: FrozenDualEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(
        "mmprompt.models.dual_encoder.forward.text.run_own",
        lambda view, own, *rest: calls.append(len(own.lengths)) or torch.zeros(1, len(own.lengths), 32).double(),
    )
    monkeypatch.setattr(roomy, "text_memory_bytes", 1)
    roomy.encode_text(
        ClassTemplate.of_context(2).slots(roomy, NAMES), draw_vectors(roomy, Case({0: "shared"}, n_ctx=2), 4)
    )
    assert calls == [1, 1, 1, 1]


def test_the_memory_limit_comes_from_the_environment(
    tiny_open_clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMPROMPT_MEMORY_LIMIT", "1.5 GB")
    assert load_backbone(str(tiny_open_clip_folder), device="cpu").text_memory_bytes == 3 * 2**29
    monkeypatch.setenv("MMPROMPT_MEMORY_LIMIT", "much")
    with pytest.raises(UserError, match="MMPROMPT_MEMORY_LIMIT is 'much', but a size was expected"):
        load_backbone(str(tiny_open_clip_folder), device="cpu")


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["shared", "per class in the middle", "per image", "deep"])
def test_autocast_stays_within_the_tolerance_of_its_dtype(model_folder: Path, kind: torch.dtype, case: str) -> None:
    """Features by relative error, gradients by the angle too: 8 and 11 bits over three layers."""
    backbone = load("open_clip", model_folder / "text_forward_autocast", "float32")
    vectors = draw_vectors(backbone, CASES[case], len(NAMES))
    leaves = [given.values for given in vectors.values()]
    slots = CASES[case].whole_template.slots(backbone, NAMES)
    expected = step(backbone, backbone.encode_text(slots, vectors), leaves)
    with torch.autocast("cpu", kind):
        features = backbone.encode_text(slots, vectors)
    found = step(backbone, features.float(), leaves)
    with torch.autocast("cpu", kind):
        again = encode_slots(backbone.text, slots, vectors, memory_bytes=1)
    in_chunks = step(backbone, torch.nn.functional.normalize(again.float(), dim=-1), leaves)
    limit = {torch.bfloat16: 5e-2, torch.float16: 5e-3}[kind]
    for name, value in expected.items():
        for run in (found, in_chunks):
            assert 0 < (run[name] - value).norm() / value.norm() < limit, name


@pytest.mark.parametrize(
    ("site", "values", "scope", "message"),
    [
        (Site("text", 3), (3, 32), "shared", r"site is text.layer\[3\], but this text tower has 3 layers"),
        (Site("text"), (3, 31), "shared", r"text.input are shared \[3, 31\], but .* 4 classes take shared \[3, 32\]"),
        (Site("text"), (3, 3, 32), "class", r"are class \[3, 3, 32\], but .* take class \[4, 3, 32\]"),
        (Site("text"), (3, 32), "sample", r"are sample \[3, 32\], but"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(
    roomy: FrozenDualEncoder, site: Site, values: tuple[int, ...], scope: Scope, message: str
) -> None:
    slots = ClassTemplate.of_context(3).slots(roomy, NAMES)
    given = {Site("text"): Vectors(torch.zeros(3, 32).double())}
    with pytest.raises(UserError, match=message):
        roomy.encode_text(slots, given | {site: Vectors(torch.zeros(values).double(), scope)})


@pytest.mark.parametrize(("layer", "n_vectors"), [(0, 8), (0, 1), (0, None), (1, 3)])
def test_vectors_without_a_slot_and_slots_without_a_vector_are_refused(
    roomy: FrozenDualEncoder, layer: int, n_vectors: int | None
) -> None:
    counts = {0: 2} | ({layer: n_vectors} if n_vectors else {})
    given = {Site("text", i): Vectors(torch.zeros(n, 32).double()) for i, n in counts.items()}
    with pytest.raises(UserError, match=f"has slots for 2 context vectors, but {n_vectors or 0} .*were given"):
        roomy.encode_text(ClassTemplate.of_context(2).slots(roomy, NAMES), given if n_vectors else {})


def test_vectors_of_different_numbers_of_images_are_refused(roomy: FrozenDualEncoder) -> None:
    slots = ClassTemplate.of_context(3).slots(roomy, NAMES)
    given = {Site("text", layer): Vectors(torch.zeros(2 + layer, 3, 32).double(), "sample") for layer in (0, 1)}
    with pytest.raises(UserError, match=r"text.layer\[1\] are sample \[3, 3, 32\], but .* take sample \[2, 3, 32\]"):
        roomy.encode_text(slots, given)

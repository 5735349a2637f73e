"""Changes of weights hold while a model reads, and not longer, whatever happens meanwhile."""

from __future__ import annotations

import pytest
import torch

from mmprompt.errors import UserError
from mmprompt.models.decoder.inserts import block_names, in_attention, linear_layers
from mmprompt.models.decoder.packing import Question
from mmprompt.models.sites import Bottleneck, Insert, LowRank, NormDelta, Site, Vectors, Weight
from tests.language_models import CAUSAL, ENCODED, OTHER_CAUSAL, frozen_model

FAMILIES = (*CAUSAL, *OTHER_CAUSAL, *ENCODED)
LAYER, BLOCK, WEIGHT = "model.layers.1.self_attn.q_proj", "model.layers.1", "model.layers.1.self_attn.q_proj.weight"
QUESTION = [Question((5, 6, 7), ((8, 9),))]


def changes() -> dict[Site, Insert]:
    torch.manual_seed(1)
    return {
        Site("lm", part=LAYER): LowRank(torch.randn(2, 32), torch.randn(32, 2)),
        Site("lm", part=BLOCK): Bottleneck(torch.randn(4, 32), torch.randn(4), torch.randn(32, 4), torch.randn(32)),
        Site("lm", part=WEIGHT): Weight(torch.randn(32, 32)),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_and_blocks_are_found_in_every_family(family: str) -> None:
    model = frozen_model(family, torch.float32)
    layers = linear_layers(model.lm)
    n_towers = 2 if model.is_encoder_decoder else 1
    assert len(block_names(model.lm)) == 2 * n_towers
    own = [name for name in layers if in_attention(name)]
    assert len(own) >= 2 * 2 * n_towers
    assert len(layers) > len(own)
    assert not any("head" in name for name in layers)


@pytest.mark.parametrize("site", list(changes()), ids=str)
def test_a_change_is_felt_while_it_reads_and_is_gone_after(site: Site) -> None:
    model = frozen_model("llama")
    plain = model.predict({}, QUESTION).token_log_probs()
    found = model.predict({site: changes()[site]}, QUESTION).token_log_probs()
    assert not torch.allclose(found, plain)
    assert torch.equal(model.predict({}, QUESTION).token_log_probs(), plain)
    assert model.compute_fingerprint() == model.fingerprint


def test_it_is_gone_where_reading_breaks_off_too() -> None:
    model = frozen_model("llama")
    weight = model.lm.get_parameter(WEIGHT)

    def break_off() -> None:
        with model.changed(changes()):
            assert model.lm.get_submodule(LAYER).weight is not weight
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    assert model.lm.get_parameter(WEIGHT) is weight
    assert not any(part._forward_hooks for part in model.lm.modules())


def test_tied_weights_are_changed_in_both_places() -> None:
    model = frozen_model("llama")
    table = model.lm.get_input_embeddings().weight
    assert model.lm.get_output_embeddings().weight is table
    change = {Site("lm", part="model.embed_tokens.weight"): Weight(torch.zeros_like(table))}
    log_probs = model.predict(change, QUESTION).token_log_probs()
    torch.testing.assert_close(log_probs.exp(), torch.full_like(log_probs, 1 / len(table)))


@pytest.mark.parametrize(
    ("part", "insert", "message"),
    [
        (
            "model.layers.1.self_attn.q_prj",
            LowRank(torch.zeros(2, 32), torch.zeros(32, 2)),
            "there is no part of llama named 'model.layers.1.self_attn.q_prj'. "
            f"Did you mean '{LAYER}'? Build it for this model.",
        ),
        (
            LAYER,
            LowRank(torch.zeros(2, 32), torch.zeros(16, 2)),
            f"lm.part[{LAYER}] was given [32, 16], but that of llama is [32, 32]. Build it for this model.",
        ),
        (
            "model.layers.0.input_layernorm",
            LowRank(torch.zeros(2, 32), torch.zeros(32, 2)),
            "lm.part[model.layers.0.input_layernorm] was given [32, 32], but that of llama is [0, 0]. "
            "Build it for this model.",
        ),
        (
            WEIGHT,
            Weight(torch.zeros(32)),
            f"lm.part[{WEIGHT}] was given [32], but that of llama is [32, 32]. Build it for this model.",
        ),
        (
            "model.norm",
            NormDelta(torch.zeros(32), torch.zeros(32)),
            "what is learned at lm.part[model.norm] is a NormDelta, but llama takes a term, a network or a weight "
            "there. Build it for this model.",
        ),
    ],
)
def test_what_does_not_fit_is_refused(part: str, insert: Insert, message: str) -> None:
    with pytest.raises(UserError) as caught:
        frozen_model("llama").predict({Site("lm", part=part): insert}, QUESTION)
    assert str(caught.value) == message


def test_sites_of_other_towers_are_refused() -> None:
    with pytest.raises(UserError, match=r"text\.block\[0\]\.query is no layer of llama"):
        frozen_model("llama").predict(
            {Site("text", 0, "query"): LowRank(torch.zeros(2, 32), torch.zeros(32, 2))}, QUESTION
        )
    with pytest.raises(UserError, match=r"lm\.part\[a\] is no site of llama"):
        frozen_model("llama").predict({Site("lm", part="a"): Vectors(torch.zeros(2, 32))}, QUESTION)


def test_sites_are_read_back_from_their_names() -> None:
    assert str(Site.parse(f"lm.part[{LAYER}]")) == f"lm.part[{LAYER}]"
    assert Site.parse(f"lm.part[{LAYER}]") == Site("lm", part=LAYER)
    for text in ("lm.part[]", "lm.part[a..b]", "lm.part[a/b]", "head.part[a]"):
        with pytest.raises(UserError, match="is not a site"):
            Site.parse(text)

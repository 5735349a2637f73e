"""What a prompt is: sources at sites, and what can be asked of all of them together."""

import pytest
import torch

from mmprompt.classification.template import ClassTemplate
from mmprompt.core.learned import Given, Learned, Prompt
from mmprompt.core.sources import Conditioned, Coupled, LowRankTerms
from mmprompt.errors import UserError
from mmprompt.models.sites import LowRank, Site, Vectors
from tests import small_models

TEMPLATE = ClassTemplate("{soft*2} {name}.")


@pytest.fixture
def coupled():
    source = Coupled(n_ctx=2, depth=2, text_width=6, vision_width=4)
    small_models.randomise(source, seed=0)
    return source


def test_one_source_serves_sites_of_both_towers(coupled):
    prompt = Prompt(TEMPLATE, coupled)
    assert [str(site) for site in prompt.sites] == ["text.input", "text.layer[1]", "vision.input", "vision.layer[1]"]
    assert set(prompt.inserts("text")) == {Site("text"), Site("text", 1)}
    assert set(prompt.inserts("vision")) == {Site("vision"), Site("vision", 1)}
    assert set(prompt.inserts()) == set(prompt.sites)
    text, vision = prompt.inserts("text")[Site("text")], prompt.inserts("vision")[Site("vision")]
    torch.testing.assert_close(vision.values, coupled.maps[0](text.values))


def test_a_tower_has_something_learned_where_a_source_has_a_site_in_it(coupled):
    text = Learned(Site("text"), torch.zeros(2, 6))
    assert Prompt(TEMPLATE, coupled).has("vision")
    assert not Prompt(TEMPLATE, text).has("vision")
    assert Prompt(TEMPLATE, text).sources_of("text") == [text]
    assert Prompt(TEMPLATE, text).sources_of("vision") == []
    assert Prompt(TEMPLATE, coupled).sources_of("vision") == Prompt(TEMPLATE, coupled).sources_of("text") == [coupled]


def test_two_sources_at_one_site_are_refused(coupled):
    with pytest.raises(UserError, match=r"two sources both learn at text\.layer\[1\], vision\.input"):
        Prompt(
            TEMPLATE, coupled, Learned(Site("vision"), torch.zeros(1, 4)), Learned(Site("text", 1), torch.zeros(1, 6))
        )


def test_vectors_are_learned_in_units_of_their_own():
    values, unit = torch.tensor([[2.0, 4.0]]), torch.tensor([0.5, 0.0])
    source = Learned(Site("text"), values, unit=unit)
    assert source.values.tolist() == [[4.0, 4.0]]  # a unit of nothing is 1
    assert source(Given())[Site("text")].values.tolist() == values.tolist()


def test_learning_starts_from_a_copy():
    values = torch.zeros(1, 2)
    source = Learned(Site("text"), values)
    with torch.no_grad():
        source.values.add_(1)
    assert values.tolist() == [[0.0, 0.0]]


def test_a_joined_prompt_has_the_sources_of_both_among_its_own_words():
    text = Prompt(TEMPLATE, Learned(Site("text"), torch.zeros(2, 6)))
    vision = Prompt(ClassTemplate("a photo of a {}."), Learned(Site("vision"), torch.zeros(1, 4)))
    assert text.join(vision).template == TEMPLATE
    assert text.join(vision).sites == (Site("text"), Site("vision"))


def test_two_heads_are_refused():
    prompt = Prompt(TEMPLATE, head=torch.nn.Identity())
    with pytest.raises(UserError, match="two methods both learn a head"):
        prompt.join(prompt)
    assert prompt.join(Prompt(TEMPLATE)).head is prompt.head


def test_a_source_that_reads_the_image_gives_vectors_of_each(coupled):
    source = Conditioned(2, image_width=16, text_width=6)
    prompt = Prompt(TEMPLATE, source)
    images = torch.randn(3, 16)
    vectors = prompt.inserts("text", Given(images))[Site("text")]
    assert (vectors.scope, vectors.values.shape) == ("sample", (3, 2, 6))
    assert prompt.needs_image
    assert not Prompt(TEMPLATE, coupled).needs_image


def test_a_source_that_reads_the_image_cannot_learn_in_the_image_tower():
    class Circular(Coupled):
        needs_image = True

    with pytest.raises(UserError, match=r"Circular reads the image features, but learns at vision\.input"):
        Prompt(TEMPLATE, Circular(2, 6, 4, 1))


def test_low_rank_terms_are_inserts_like_vectors():
    source = LowRankTerms({"text.block[0].query": 6, "vision.block[1].value": 4}, rank=2, scale=0.5, dropout=0.25)
    (term,) = Prompt(TEMPLATE, source).inserts("vision").values()
    assert isinstance(term, LowRank)
    assert term.dropout == 0.25
    assert Prompt(TEMPLATE, source).eval().inserts("text")[Site("text", 0, "query")].dropout == 0


def test_at_a_ratio_of_rates_terms_start_alike_and_the_inner_matrix_learns_that_much_slower():
    starts, moved = [], []
    for ratio in (1.0, 16.0):
        source = LowRankTerms({"text.block[0].query": 6}, rank=2, ratio=ratio)
        source.start_from(torch.Generator().manual_seed(1))
        (term,) = source(None).values()
        starts.append([matrix.detach().clone() for matrix in term.tensors])
        for matrix in (*source.a, *source.b):
            matrix.data -= 1.0  # a step of an optimiser that looks at no gradient's size
        (after,) = source(None).values()
        moved.append([(new - old).mean().item() for new, old in zip(after.tensors, starts[-1], strict=True)])
    assert all(map(torch.equal, *starts))
    assert moved == [pytest.approx([-1.0, -1.0]), pytest.approx([-1 / 16, -1.0])]
    assert source.settings()["ratio"] == 16.0


def test_a_low_rank_term_is_scale_b_a_x():
    a, b, x = torch.randn(2, 6), torch.randn(5, 2), torch.randn(3, 7, 6)
    torch.testing.assert_close(LowRank(a, b, scale=0.5).term(x), 0.5 * (x @ a.T @ b.T))


def test_inserts_take_other_tensors_in_the_order_they_name_them():
    vectors, term = Vectors(torch.zeros(1, 2), "class"), LowRank(torch.zeros(1, 2), torch.ones(2, 1), 3.0, 0.5)
    swapped = term.with_tensors([torch.ones(1, 2), torch.zeros(2, 1)])
    assert [tensor.sum().item() for tensor in swapped.tensors] == [2, 0]
    assert (swapped.scale, swapped.dropout) == (3.0, 0.5)
    assert vectors.with_tensors([torch.ones(1, 2)]).scope == "class"


@pytest.mark.parametrize(
    "name",
    [
        *("text.input", "vision.layer[0]", "vision.layer[3]", "lm.kv[0]", "text.block[0].query"),
        *("vision.block[11].value", "vision.pixels"),
    ],
)
def test_a_site_is_read_back_from_its_name(name):
    assert str(Site.parse(name)) == name


@pytest.mark.parametrize(
    "name", ["text", "text.block[0]", "text.block[0].proj", "text.pixels", "lm.block[0].query", "text.layer[0]", ""]
)
def test_a_name_that_is_no_site_is_refused(name):
    with pytest.raises(UserError, match="is not a site"):
        Site.parse(name)

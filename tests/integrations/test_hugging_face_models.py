"""Models of Hugging Face's, built from small configurations, through every link."""

import pytest
import torch
from models.model_kinds import KINDS
from models.model_links import LINKS, assert_as_declared

from synaptree import build, prune

pytest.importorskip("transformers")
NAMES = [name for name, kind in KINDS.items() if kind.needs == "transformers"]


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_hugging_face_goes_through_a_link_right_or_is_refused_in_words(name, link):
    assert_as_declared(KINDS[name], link)


def test_nnrelief_prunes_every_layer_of_bert_but_the_one_tied_to_the_embedding():
    model, x = KINDS["bert_masked"].made()
    topology = prune(model, build("nnrelief", alpha_fc=0.5), [x])
    whole = [name for name, mask in topology.masks.items() if name.endswith("weight") and mask.all()]
    assert whole == ["cls.predictions.decoder.weight"]
    assert any("cls.predictions.decoder" in note for note in topology.notes)


def test_a_pruned_vit_is_exactly_what_its_weights_say():
    model, x = KINDS["vit"].made()
    topology = prune(model, build("magnitude", density=0.3))
    again, _ = KINDS["vit"].made()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model.eval()(x).logits, again.eval()(x).logits)
    assert topology.density() == pytest.approx(0.3, abs=0.01)

import copy
import pickle
from itertools import product

import pytest
import torch
from torch import nn

from synaptree import sparsify
from synaptree.runtime.errors import EngineError
from synaptree.runtime.sparsify import SparseLayer

pytest.importorskip("synaptree.runtime._native")
# PyTorch's own, about nested tensors
pytestmark = pytest.mark.filterwarnings("ignore:.*nested tensor:UserWarning")


def thinned(model, density=0.2):
    """Take away a random share of the connections of every linear layer and convolution."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.weight.mul_(torch.rand(layer.weight.shape) < density)
    return model.eval()


def same(model, *inputs):
    """Whether a model computes the same when its sparse layers run on the engine."""
    with torch.no_grad():
        got, wanted = sparsify(model)(*inputs), model(*inputs)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def kinds(model):
    return [type(layer).__name__ for layer in model.modules() if not list(layer.children())]


class Block(nn.Module):
    """Attention written out, with what the engine has not got around it."""

    def __init__(self, width=32, heads=4):
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        split = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(*split)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


@pytest.mark.parametrize("shape", [(40,), (3, 40), (2, 5, 40), (2, 1, 3, 40)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_takes_any_number_of_axes_before_its_inputs(shape, bias):
    same(thinned(nn.Linear(40, 7, bias)), torch.randn(shape))


@pytest.mark.parametrize(
    ("options", "image"),
    [
        ({"kernel_size": 3, "padding": 1}, (8, 8)),
        ({"kernel_size": 3, "bias": False}, (9, 5)),
        ({"kernel_size": 3, "stride": 2, "padding": 1}, (17, 8)),
        ({"kernel_size": (1, 5), "stride": (1, 3), "padding": (0, 2)}, (4, 20)),
        ({"kernel_size": 3, "groups": 4, "padding": 1, "bias": False}, (6, 6)),
        ({"kernel_size": 3, "groups": 8, "stride": 2}, (7, 7)),
        ({"kernel_size": 3, "dilation": (2, 1), "padding": (2, 1)}, (8, 9)),
        ({"kernel_size": 2, "stride": 2}, (2, 2)),
    ],
)
def test_a_convolution_keeps_its_options(options, image):
    model = thinned(nn.Conv2d(8, 16, **options), 0.3)
    same(model, torch.randn(3, 8, *image))
    same(model, torch.randn(8, *image))  # one image without an axis of samples


def test_a_convolution_takes_images_of_several_sizes():
    model = thinned(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.GELU()))
    found = sparsify(model)
    with torch.no_grad():
        for samples, high, wide in product((1, 5), (6, 9), (6, 11)):
            x = torch.randn(samples, 3, high, wide)
            torch.testing.assert_close(found(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_model_with_attention_and_gelu_computes_the_same():
    model = thinned(nn.Sequential(Block(), Block()))
    same(model, torch.randn(2, 6, 32))
    assert kinds(sparsify(model)).count("SparseLayer") == 8
    assert "GELU" in kinds(sparsify(model))


@pytest.fixture
def encoder():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
    return thinned(nn.TransformerEncoder(layer, 2))


def test_the_encoder_of_torch_does_not_pass_by_the_layers(encoder):
    found, ran = sparsify(encoder), []
    for layer in found.modules():
        if isinstance(layer, SparseLayer):
            layer.forward = lambda x, own=layer.forward: (ran.append(1), own(x))[1]
    x = torch.randn(3, 5, 16)
    with torch.no_grad():
        torch.testing.assert_close(found(x), encoder(x), rtol=1e-4, atol=1e-5)
    assert len(ran) == 4


def test_the_encoder_of_torch_takes_samples_of_several_lengths(encoder):
    x, hidden = torch.randn(3, 5, 16), torch.arange(5) >= torch.tensor([[5], [2], [3]])
    with torch.no_grad():
        got, wanted = (model(x, src_key_padding_mask=hidden) for model in (sparsify(encoder), encoder))
    torch.testing.assert_close(got[~hidden], wanted[~hidden], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 40), (2, 0, 40)])
def test_without_samples_there_are_no_outputs(shape):
    assert sparsify(thinned(nn.Linear(40, 7)))(torch.empty(shape)).shape == (*shape[:-1], 7)


def test_without_images_there_are_no_images():
    model = thinned(nn.Conv2d(4, 8, 3, stride=2))
    assert sparsify(model)(torch.empty(0, 4, 7, 9)).shape == (0, 8, 3, 4)


def test_inputs_and_weights_need_not_lie_in_one_piece():
    same(thinned(nn.Linear(40, 7)), torch.randn(40, 6).T)
    same(thinned(nn.Linear(20, 7)), torch.randn(3, 5, 40)[:, ::2, ::2])
    model = thinned(nn.Conv2d(4, 8, 3)).to(memory_format=torch.channels_last)
    same(model, torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last))


def test_outputs_of_one_call_outlive_the_next():
    found = sparsify(thinned(nn.Linear(40, 7)))
    first = found(torch.ones(2, 40))
    kept = first.clone()
    found(torch.zeros(2, 40))
    assert torch.equal(first, kept)


def test_the_model_itself_stays_as_it_is():
    model = thinned(nn.Sequential(nn.Linear(40, 30), nn.Dropout(), nn.Linear(30, 7))).train()
    before = copy.deepcopy(model.state_dict())
    found = sparsify(model)
    found[0].weight.zero_()
    assert kinds(model) == ["Linear", "Dropout", "Linear"]
    assert model.training
    assert not any(layer.training for layer in found.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_later_changes_of_the_model_do_not_reach_its_copy():
    model, x = thinned(nn.Linear(40, 7)), torch.randn(2, 40)
    found, wanted = sparsify(model), model(x).detach()
    model.weight.data.zero_()
    torch.testing.assert_close(found(x), wanted, rtol=1e-4, atol=1e-5)


def test_the_model_itself_may_be_the_layer():
    found = sparsify(thinned(nn.Conv2d(3, 8, 3)))
    assert isinstance(found, SparseLayer)
    assert not found.training


def test_only_sparse_layers_are_handed_over():
    full, half = nn.Linear(40, 40), thinned(nn.Linear(40, 40), 0.4)
    model = nn.Sequential(full, half, nn.ModuleDict({"deep": nn.Sequential(thinned(nn.Linear(40, 40), 0.1))})["deep"])
    assert kinds(sparsify(model)) == ["Linear", "SparseLayer", "SparseLayer"]
    assert kinds(sparsify(model, density=0.2)) == ["Linear", "Linear", "SparseLayer"]


def test_a_layer_that_stands_in_two_places_is_handed_over_in_both():
    layer = thinned(nn.Linear(8, 8))
    model = nn.Sequential(layer, nn.GELU(), layer)
    found = sparsify(model)
    assert isinstance(found[0], SparseLayer)
    assert found[2] is found[0]
    same(model, torch.randn(3, 8))


def test_a_weight_that_is_shared_with_an_embedding_stays_its_own():
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 20, bias=False))
    model[1].weight = model[0].weight
    same(thinned(model), torch.arange(6).reshape(2, 3))


@pytest.mark.parametrize(
    "other",
    [
        thinned(nn.Linear(8, 8)).double(),
        thinned(nn.Linear(8, 8)).bfloat16(),
        thinned(nn.Linear(8, 8)).to("meta"),
        nn.Conv1d(8, 8, 1),
        thinned(nn.Conv2d(8, 8, 3, padding="same")),
        thinned(nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")),
        nn.Linear(8, 8),
    ],
)
def test_other_layers_stay_those_of_torch(other):
    found = sparsify(nn.Sequential(other, thinned(nn.Linear(8, 8))))
    assert kinds(found) == [type(other).__name__, "SparseLayer"]
    with pytest.raises(EngineError, match=r"no linear layer or 2-d convolution .* has a density below 0\.5"):
        sparsify(nn.Sequential(other, nn.ReLU()))


def test_a_layer_with_hooks_keeps_them():
    model = thinned(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    model[0].register_forward_hook(lambda _, __, y: y + 1)
    assert kinds(sparsify(model)) == ["Linear", "SparseLayer"]
    same(model, torch.randn(3, 8))


def test_an_own_kind_of_layer_keeps_what_it_does():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = thinned(nn.Sequential(Doubled(8, 8), nn.Linear(8, 8)))
    assert kinds(sparsify(model)) == ["Doubled", "SparseLayer"]
    same(model, torch.randn(3, 8))


def test_gradients_are_refused_and_no_gradients_are_not():
    found = sparsify(thinned(nn.Sequential(nn.Linear(40, 7))))
    x = torch.ones(2, 40, requires_grad=True)
    with pytest.raises(EngineError, match=r"no gradients; run it under torch\.no_grad"):
        found(x)
    with torch.no_grad():
        assert not found(x).requires_grad
    assert not found(x.detach()).requires_grad
    with torch.inference_mode():
        assert found(torch.ones(2, 40)).shape == (2, 7)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.ones(2, 40).double(), r"x of torch.float64 .* wanted float32 of shape \(\.\.\., 40\)"),
        (torch.ones(2, 40).bfloat16(), "torch.bfloat16"),
        (torch.ones(2, 39), r"shape \(2, 39\)"),
        (torch.ones(()), r"shape \(\)"),
        (torch.ones(2, 40, device="meta"), "on meta: wanted .* on the cpu"),
    ],
)
def test_other_inputs_of_a_linear_layer_are_named(x, said):
    with pytest.raises(EngineError, match=said):
        sparsify(thinned(nn.Linear(40, 7)))(x)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((2, 3, 6, 6), r"shape \(2, 3, 6, 6\) .* \(samples, 4, height, width\)"),
        ((1, 2, 4, 6, 6), "wanted float32 of shape"),
        ((4, 6), "wanted float32 of shape"),
        ((2, 4, 2, 6), r"a kernel of \(3, 3\) finds no place in an image of \(2, 6\)"),
    ],
)
def test_other_inputs_of_a_convolution_are_named(shape, said):
    with pytest.raises(EngineError, match=said):
        sparsify(thinned(nn.Conv2d(4, 8, 3, groups=1)))(torch.ones(shape))


@pytest.mark.parametrize("layer", [nn.Linear(2, 2).double(), nn.Conv2d(1, 1, 3, padding="same")])
def test_a_sparse_layer_of_another_kind_is_refused(layer):
    with pytest.raises(EngineError, match="wanted"):
        SparseLayer(layer)


def test_a_copy_and_a_pickle_compute_the_same():
    model, x = thinned(nn.Sequential(nn.Linear(40, 7), nn.GELU())), torch.randn(3, 40)
    found = sparsify(model)
    wanted = found(x)
    for again in (copy.deepcopy(found), pickle.loads(pickle.dumps(found)), sparsify(thinned(model, 1.0))):
        torch.testing.assert_close(again(x), wanted, rtol=1e-4, atol=1e-5)


def test_threads_share_the_work_of_a_layer():
    model, x = thinned(nn.Linear(400, 300)), torch.randn(70, 400)
    with torch.no_grad():
        torch.testing.assert_close(sparsify(model, threads=2)(x), model(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(EngineError, match="at least 1"):
        sparsify(model, threads=0)(x)


def test_what_is_left_to_train_and_to_print_is_what_torch_computes():
    found = sparsify(thinned(nn.Sequential(nn.Linear(40, 7), nn.PReLU())))
    assert [name for name, _ in found.named_parameters()] == ["1.weight"]
    assert "(0): SparseLayer(in_features=40, out_features=7, bias=True, density=0.2" in str(found)

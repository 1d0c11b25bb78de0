import pytest
import torch
from torch import nn

from synaptree.core.errors import NumericError
from synaptree.graph.node import GraphError
from synaptree.surgery.proof import Proof

X = torch.tensor([[1.0, -2.0]])


class Gives(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output(x)


@pytest.mark.parametrize("output", [
    lambda x: x > 0, lambda x: (x > 0).byte(), lambda x: x.to(torch.complex64) * 1j, lambda x: x[:0],
    lambda x: x / 0.0, lambda x: {"a": x, "b": (3, None, "name")}, lambda x: x.bfloat16(),
])  # fmt: skip
def test_a_model_gives_the_same_as_itself_whatever_it_gives(output):
    assert Proof(Gives(output), X).error(Gives(output)) == 0.0


@pytest.mark.parametrize(("one", "other"), [
    (lambda x: x, lambda x: x + 1e-3),
    (lambda x: x > 0, lambda x: x < 0),
    (lambda x: (x > 0).byte(), lambda x: (x < 0).byte()),
    (lambda x: x.to(torch.complex64), lambda x: x + 1e-3j),
    (lambda x: x, lambda x: x / 0.0),
    (lambda x: torch.cat([x, x / 0.0]), lambda x: torch.cat([x + 1.0, x / 0.0])),
    (lambda x: x.bfloat16(), lambda x: x.bfloat16() * 1.2),
    (lambda x: (x, 3), lambda x: (x, 2)),
    (lambda x: x, lambda x: (x, x)),
    (lambda x: x, lambda x: x[0]),
    (lambda x: x, lambda x: x @ x),
])  # fmt: skip
def test_another_output_is_told_from_rounding(one, other):
    proof = Proof(Gives(one), X)
    assert not proof.holds(Gives(other))
    with pytest.raises(NumericError):
        proof.error(Gives(other))


def test_small_outputs_are_compared_by_their_own_size():
    proof = Proof(Gives(lambda x: 1e-6 * x), X)
    assert not proof.holds(Gives(lambda x: 1.01e-6 * x))


def test_what_rounding_leaves_of_a_difference_of_large_numbers_is_let_pass():
    # of the sum in single precision, in steps of 2^-3 at 2^20, little is left
    proof = Proof(Gives(lambda x: (x + 2.0**20) - 2.0**20 - x), X)
    assert proof.holds(Gives(lambda x: x * 0.0))


def test_a_model_that_does_not_run_in_double_precision_is_compared_as_if_its_outputs_were_of_size_one():
    weight = torch.full((2, 1), 1e-6)
    proof = Proof(Gives(lambda x: x @ weight), X)
    assert proof.holds(Gives(lambda x: x @ weight + 1e-7))
    assert not proof.holds(Gives(lambda x: x @ weight + 1e-3))


def test_rounding_is_measured_and_let_pass():
    assert Proof(Gives(lambda x: x), X).error(Gives(lambda x: x + 2.0**-20)) == pytest.approx(2.0**-20, rel=0.5)


def test_random_numbers_are_left_out_where_the_model_does_not_take_them():
    def positive(x):
        if (x < 0).any():
            raise ValueError("negative")
        return x

    assert len(Proof(Gives(positive), X.abs()).inputs) == 1
    assert len(Proof(Gives(positive), torch.ones(1, 2, dtype=torch.int64)).inputs) == 1
    assert len(Proof(Gives(lambda x: x), X).inputs) == 2


def test_an_example_the_model_does_not_take_is_refused():
    with pytest.raises(GraphError, match=r"example of shape \(1, 2\)"):
        Proof(nn.Linear(3, 1), X)


def test_an_example_or_a_model_with_nan_proves_nothing():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with pytest.raises(NumericError, match=r"the example, of shape \(1, 2\), holds NaN or infinity"):
        Proof(model, torch.tensor([[1.0, torch.nan]]))
    with torch.no_grad():
        model[0].bias[0] = torch.nan
    with pytest.raises(NumericError, match=r"an output of the model on the example, of shape \(1, 1\), holds NaN"):
        Proof(model, torch.ones(1, 2))

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from synaptree import save
from synaptree.format.file import read_file
from synaptree.graph.shortcut import Shortcut
from synaptree.runtime import reference
from synaptree.runtime.errors import EngineError
from synaptree.runtime.ir import Net
from synaptree.runtime.lower import lower


def net_of(model: nn.Module, x: Tensor, folder: Path) -> Net:
    save(model.eval(), folder / "net.syn", example_input=x)
    return lower(read_file(folder / "net.syn"))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.shortcut = Shortcut(4, 8, stride=2)
        self.third = nn.Conv2d(4, 8, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.second(torch.relu(self.first(x)))) + x)
        return torch.relu(self.third(y) + self.shortcut(y)).mean((2, 3))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1, groups=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(nn.functional.leaky_relu(self.norm(torch.cat([x, self.conv(x)], 1)) * 2 - 1), 1)


CASES = [
    (nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 3), nn.LogSoftmax(1)), (3, 2, 2)),
    (nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU6(), nn.Linear(9, 4, bias=False)), (6,)),
    (nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, dilation=2, groups=3), nn.BatchNorm2d(6), nn.PReLU(6)), (3, 9, 8)),
    (nn.Sequential(nn.Conv2d(2, 3, 2, padding="same"), nn.Hardtanh(-0.3, 0.4)), (2, 5, 6)),
    (nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(15, 2)), (2, 10)),
    (nn.Sequential(nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(2, 1, 1, count_include_pad=False)), (2, 7, 6)),
    (nn.Sequential(nn.AvgPool2d(3, 2, 1, ceil_mode=True), nn.AdaptiveMaxPool2d((3, 2)), nn.Dropout()), (2, 9, 8)),
    (nn.Sequential(nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten(), nn.Identity(), nn.Softmax(1)), (2, 5, 7)),
    (Residual(), (4, 6, 6)),
    (Dense(), (3, 4, 4)),
]


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's own, about its speed
@pytest.mark.parametrize("case", range(len(CASES)))
def test_the_reference_computes_what_torch_does(case, tmp_path):
    model, shape = CASES[case]
    torch.manual_seed(case)
    x = torch.randn(5, *shape)
    model.train()
    for _ in range(3):
        model(torch.randn(6, *shape))  # running statistics that are not those of the start
    net = net_of(model, x, tmp_path)
    np.testing.assert_allclose(reference.run(net, x.numpy()), model(x).detach().numpy(), rtol=2e-5, atol=2e-6)


def test_norms_sums_and_activations_become_part_of_the_layers(tmp_path):
    net = net_of(Residual(), torch.randn(2, 4, 6, 6), tmp_path)
    # relu(first), relu(norm(second) + x), shortcut, relu(third + shortcut), mean, flatten
    assert [node.op for node in net.nodes] == ["conv", "conv", "shortcut", "conv", "adaptive_avg_pool", "flatten"]
    assert [node.residual for node in net.nodes] == [None, 0, None, 3, None, None]
    assert all(node.low == 0 for node in net.nodes if node.op == "conv")


def test_a_layer_that_two_read_keeps_its_own_result(tmp_path):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x)
            return torch.relu(y) + y

    model, x = Twice(), torch.randn(3, 4)
    net = net_of(model, x, tmp_path)
    assert [node.op for node in net.nodes] == ["linear", "clamp", "add"]
    np.testing.assert_allclose(reference.run(net, x.numpy()), model(x).detach().numpy(), atol=1e-6)


def test_hidden_units_are_ordered_by_their_connections(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2, 3], [0, 4, 0], [5, 6, 0]]))
        model[2].weight.copy_(torch.tensor([[7.0, 8, 9]]))
    net = net_of(model, torch.randn(1, 3), tmp_path)
    assert net.nodes[0].weight.tolist() == [[0, 4, 0], [5, 6, 0], [1, 2, 3]]
    assert net.nodes[1].weight.tolist() == [[8, 9, 7]]


def test_tensors_that_the_network_does_not_read_do_no_harm(tmp_path):
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.old = nn.Linear(4, 4), nn.GRUCell(4, 4)
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.fc(x))

    model, x = Spare(), torch.randn(3, 4)
    net = net_of(model, x, tmp_path)
    assert [node.op for node in net.nodes] == ["linear"]
    np.testing.assert_allclose(reference.run(net, x.numpy()), model(x).detach().numpy(), atol=1e-6)


def test_integers_of_an_int8_layer_are_those_of_the_file(tmp_path):
    model = nn.Sequential(nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[127.0, -64, 0, 1], [0.5, 0, 0, -0.25]]))
    save(model, tmp_path / "net.syn", values="int8", example_input=torch.randn(1, 4))
    node = lower(read_file(tmp_path / "net.syn")).nodes[0]
    assert node.integers.tolist() == [[127, -64, 0, 1], [127, 0, 0, -63]]  # of scales 1 and a little above 0.5 / 127
    np.testing.assert_array_equal(node.scales[:, None] * node.integers, node.weight)


@pytest.mark.parametrize(
    ("model", "shape", "said"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.GELU()), (4,), "step 1, gelu.*sparsify"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), (1, 5, 5), "padding of reflect"),
        (nn.Softmax(2), (3, 4), "axis 2"),
        (nn.Flatten(2), (2, 3, 4), "all axes but the samples'"),
        (nn.BatchNorm2d(3, track_running_stats=False), (3, 4, 4), "running statistics"),
        (nn.Linear(4, 4), (3, 4), r"shape \(3, 4\), wanted \(4,\)"),
    ],
)
def test_what_the_engine_cannot_is_refused_by_name(model, shape, said, tmp_path):
    with pytest.raises(EngineError, match=said):
        net_of(nn.Sequential(model), torch.randn(2, *shape), tmp_path)


def test_a_file_that_does_not_say_what_it_computes_is_refused(tmp_path):
    save(nn.Linear(2, 2), tmp_path / "net.syn")
    with pytest.raises(EngineError, match="example_input"):
        lower(read_file(tmp_path / "net.syn"))


def test_two_outputs_are_refused(tmp_path):
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x + 1, x * 2

    with pytest.raises(EngineError, match="2 outputs"):
        net_of(Two(), torch.randn(1, 2), tmp_path)


def test_lowering_needs_no_torch(tmp_path):
    import subprocess
    import sys

    save(CASES[0][0].eval(), tmp_path / "net.syn", example_input=torch.randn(2, 3, 2, 2))
    code = (
        "import sys; from synaptree.format.file import read_file; from synaptree.runtime.lower import lower; "
        f"lower(read_file({str(tmp_path / 'net.syn')!r})); print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"

"""Small models of every kind people bring, and what each link of the chain makes of them.

`docs/models.md` shows what is said here; `tools/models.py` writes it.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        title: for the table.
        make: returns one, and what it takes: a tensor, a tuple of them, or else.
        leaves: link -> how the sentence begins that says what it leaves alone.
        refuses: link -> what the sentence of the refusal has in it.
        needs: the library it comes from, if it is not torch.
    """

    title: str
    make: Callable
    leaves: dict[str, str] = field(default_factory=dict)
    refuses: dict[str, str] = field(default_factory=dict)
    needs: str = ""

    def made(self):
        """Return one, the same at each call, and what it takes."""
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces the end of some
            return self.make()


KINDS: dict[str, Kind] = {}


def kind(title, leaves=None, refuses=None, needs=""):
    """Register a function that makes a model."""

    def register(make):
        KINDS[make.__name__] = Kind(title, make, leaves or {}, refuses or {}, needs)
        return make

    return register


def of_file(sentence):
    return {"file": sentence, "engine": sentence}


def of_all(sentence, *but):
    links = ("masks", "gradients", "activity", "nnrelief", "compaction", "file", "weights", "engine")
    return {link: sentence for link in links if link not in but}


def no_layers(names):
    return f"left alone, since they are no linear layer's and no convolution's: {names}"


def shared(names):
    return f"left alone, since something else uses their weights too: {names}"


class Model(nn.Module):
    """A forward given as a function of the module and its input."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.run(self, x)


class Pair(Model):
    """The same of two inputs."""

    def forward(self, x, y):
        return self.run(self, x, y)


class AnyNumber(Model):
    """The same of any number of inputs."""

    def forward(self, *inputs):
        return self.run(self, *inputs)


class Doubled(nn.Linear):
    """A layer with a forward of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


def numbers(*shape):
    return torch.randn(12, *shape, generator=torch.Generator().manual_seed(1))


def words():
    return torch.randint(20, (12, 6), generator=torch.Generator().manual_seed(1))


def perceptron(*layers):
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


@kind("a single layer", refuses={"engine": "step 0, constant 'weight': the engine has no constants"})
def one_layer():
    return nn.Linear(6, 3), numbers(6)


@kind("a single layer in `nn.Sequential`, without bias")
def one_layer_without_bias():
    return nn.Sequential(nn.Linear(6, 3, bias=False)), numbers(6)


@kind("layers in `ModuleList` and `ModuleDict`, dropout")
def in_lists():
    def run(m, x):
        for layer in m.layers:
            x = F.dropout(layer(x).relu(), 0.5, m.training)
        return m.heads["kind"](x)

    layers, heads = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 8)]), nn.ModuleDict({"kind": nn.Linear(8, 3)})
    return Model(run, layers=layers, heads=heads), numbers(6)


@kind("two linear layers with one weight", leaves={"nnrelief": shared("there")})
def tied_layers():
    model = Model(
        lambda m, x: m.out(m.back(m.there(x).relu()).relu()),
        there=nn.Linear(8, 8), back=nn.Linear(8, 8), out=nn.Linear(8, 3),
    )  # fmt: skip
    model.back.weight = model.there.weight
    return model, numbers(8)


@kind("two linear layers with one bias", leaves={"nnrelief": shared("0, 2")})
def tied_biases():
    model = perceptron(nn.Linear(6, 8))
    model[2].bias = model[0].bias
    return model, numbers(6)


@kind(
    "an output layer with the weight of the embedding",
    leaves={"nnrelief": shared("out")}, refuses={"engine": "input of int64: wanted float32"},
)  # fmt: skip
def tied_embedding():
    model = Model(
        lambda m, x: m.out(m.mix(m.embed(x)).relu()),
        embed=nn.Embedding(20, 8), mix=nn.Linear(8, 8), out=nn.Linear(8, 20, bias=False),
    )  # fmt: skip
    model.out.weight = model.embed.weight
    return model, words()


@kind(
    "a weight used once more by a function",
    leaves={"nnrelief": shared("into")}, refuses=of_file("Model reads into.weight beside the module it belongs to"),
)  # fmt: skip
def transposed_weight():
    return Model(lambda m, x: F.linear(m.into(x).relu(), m.into.weight.t()), into=nn.Linear(6, 4)), numbers(6)


@kind("a layer whose weight only a function uses", leaves={"activity": "mix", "nnrelief": shared("mix")})
def functional_layer():
    return Model(
        lambda m, x: m.out(F.linear(m.into(x).relu(), m.mix.weight, m.mix.bias).relu()),
        into=nn.Linear(6, 8), mix=nn.Linear(8, 8), out=nn.Linear(8, 3),
    ), numbers(6)  # fmt: skip


@kind("a module called twice")
def called_twice():
    return Model(
        lambda m, x: m.out(m.twice(m.twice(m.into(x).relu()).relu()).relu()),
        into=nn.Linear(6, 8), twice=nn.Linear(8, 8), out=nn.Linear(8, 3),
    ), numbers(6)  # fmt: skip


@kind(
    "a layer that is never called",
    leaves={"activity": "spare", "nnrelief": "left alone, since nothing flows through them: spare"},
)
def never_called():
    return Model(
        lambda m, x: m.out(m.into(x).relu()), into=nn.Linear(6, 8), spare=nn.Linear(8, 8), out=nn.Linear(8, 3)
    ), numbers(6)


@kind("a layer with a forward of its own")
def own_forward():
    return perceptron(Doubled(6, 8)), numbers(6)


@kind("modules called with named arguments")
def named_arguments():
    return Model(
        lambda m, x: m.out(input=m.mix(input=m.into(input=x).relu()).relu()),
        into=nn.Linear(6, 8), mix=nn.Linear(8, 8), out=nn.Linear(8, 3),
    ), numbers(6)  # fmt: skip


@kind("a residual sum")
def residual():
    return Model(
        lambda m, x: m.out((y := m.into(x).relu()) + m.mix(y).relu()),
        into=nn.Linear(6, 8), mix=nn.Linear(8, 8), out=nn.Linear(8, 3),
    ), numbers(6)  # fmt: skip


@kind(
    "`nn.Parameter` used in the forward",
    leaves={"nnrelief": no_layers("mix")}, refuses={"engine": "step 2, constant 'mix': the engine has no constants"},
)  # fmt: skip
def own_parameter():
    model = Model(
        lambda m, x: m.out((m.into(x).relu() @ m.mix + m.shift).relu()), into=nn.Linear(6, 8), out=nn.Linear(8, 3)
    )
    model.mix, model.shift = nn.Parameter(torch.randn(8, 8) / 3), nn.Parameter(torch.randn(8))
    return model, numbers(6)


@kind("`Conv1d`")
def convolution_1d():
    return nn.Sequential(
        nn.Conv1d(2, 6, 3), nn.ReLU(), nn.Conv1d(6, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
    ), numbers(2, 10)


@kind("`Conv3d`", refuses={"engine": "input of shape (1, 4, 4, 4): wanted 1 to 3 axes beside the samples'"})
def convolution_3d():
    return nn.Sequential(
        nn.Conv3d(1, 4, 2), nn.ReLU(), nn.Conv3d(4, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
    ), numbers(1, 4, 4, 4)


@kind("grouped convolutions")
def grouped():
    return nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
    ), numbers(2, 6, 6)


@kind("depthwise convolutions, batch norm")
def depthwise():
    return nn.Sequential(
        nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(),
        nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3),
    ), numbers(2, 6, 6)  # fmt: skip


@kind(
    "`ConvTranspose2d`",
    leaves={"nnrelief": no_layers("2.weight")},
    refuses={"engine": "step 2, conv_transpose2d '2': the engine has no such operator"},
)
def transposed_convolution():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, stride=2), nn.ReLU(), nn.Conv2d(4, 2, 3)
    ), numbers(2, 6, 6)


@kind(
    "a U-Net with skip concatenations",
    leaves={"nnrelief": no_layers("up.weight")},
    refuses={"engine": "step 5, conv_transpose2d 'up': the engine has no such operator"},
)
def u_net():
    def run(m, x):
        fine = m.down(x).relu()
        coarse = m.deep(F.max_pool2d(fine, 2)).relu()
        return m.out(torch.cat([fine, m.up(coarse).relu()], 1))

    return Model(
        run, down=nn.Conv2d(2, 6, 3, padding=1), deep=nn.Conv2d(6, 8, 3, padding=1),
        up=nn.ConvTranspose2d(8, 6, 2, stride=2), out=nn.Conv2d(12, 2, 1),
    ), numbers(2, 6, 6)  # fmt: skip


@kind(
    "convolutions called without an axis of samples",
    leaves={"compaction": "nothing was removed: the model does not run on an example"},
    refuses={
        "nnrelief": "layer into: what flows into it has no axis of samples; give batches of shape (samples, ...)",
        **of_file("the model does not run on inputs of shape (2, 6, 6), at module 'into'"),
    },
)
def without_samples():
    return Model(
        lambda m, x: m.out(m.mix(m.into(x).relu()).relu().mean((-1, -2))),
        into=nn.Conv2d(6, 8, 1), mix=nn.Conv2d(8, 8, 3), out=nn.Linear(8, 3),
    ), numbers(6, 6)[:6]  # fmt: skip


@kind(
    "an embedding",
    leaves={"nnrelief": no_layers("embed.weight")}, refuses={"engine": "input of int64: wanted float32"},
)  # fmt: skip
def embedding():
    return Model(
        lambda m, x: m.out(m.mix(m.embed(x).mean(1)).relu()),
        embed=nn.Embedding(20, 8), mix=nn.Linear(8, 8), out=nn.Linear(8, 3),
    ), words()  # fmt: skip


@kind(
    "`nn.MultiheadAttention`",
    leaves={
        "activity": "attend.out_proj",
        "nnrelief": f"{no_layers('attend.in_proj_weight')}; left alone, since nothing flows through them: attend.out",
    },
    refuses=of_file("module 'attend' (MultiheadAttention): the file format has no operator for it"),
)
def attention():
    return Model(
        lambda m, x: m.out(m.attend(y := m.into(x), y, y, need_weights=False)[0].mean(1)),
        into=nn.Linear(4, 8), attend=nn.MultiheadAttention(8, 2, batch_first=True), out=nn.Linear(8, 3),
    ), numbers(5, 4)  # fmt: skip


@kind(
    "`nn.TransformerEncoderLayer`",
    leaves={
        "activity": "0.self_attn.out_proj",
        "nnrelief": f"{no_layers('0.self_attn.in_proj_weight')}; left alone, since nothing flows through them: 0.self",
    },
    refuses=of_file("module '0' (TransformerEncoderLayer): the file format has no operator for it"),
)
def transformer_layer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.Linear(8, 3)), numbers(5, 8)


@kind(
    "`nn.GRU`",
    leaves={"nnrelief": no_layers("rnn.weight_ih_l0, rnn.weight_hh_l0")},
    refuses=of_file("module 'rnn' (GRU): the file format has no operator for it"),
)
def gru():
    return Model(
        lambda m, x: m.out(m.rnn(m.into(x).relu())[0][:, -1]),
        into=nn.Linear(4, 8), rnn=nn.GRU(8, 8, batch_first=True), out=nn.Linear(8, 3),
    ), numbers(5, 4)  # fmt: skip


@kind(
    "`nn.LSTM`",
    leaves={"nnrelief": no_layers("rnn.weight_ih_l0, rnn.weight_hh_l0")},
    refuses=of_file("module 'rnn' (LSTM): the file format has no operator for it"),
)
def lstm():
    return Model(
        lambda m, x: m.out(m.rnn(m.into(x).relu())[1][0][-1]),
        into=nn.Linear(4, 8), rnn=nn.LSTM(8, 8, batch_first=True), out=nn.Linear(8, 3),
    ), numbers(5, 4)  # fmt: skip


@kind(
    "`nn.Bilinear`",
    leaves={"nnrelief": no_layers("pair.weight")},
    refuses=of_file("module 'pair' (Bilinear): the file format has no operator for it"),
)
def bilinear():
    return Model(
        lambda m, x: m.out(m.pair(y := m.into(x), y).relu()),
        into=nn.Linear(6, 8), pair=nn.Bilinear(8, 8, 8), out=nn.Linear(8, 3),
    ), numbers(6)  # fmt: skip


@kind(
    "`parametrizations.weight_norm`",
    leaves={"nnrelief": no_layers("0.parametrizations.weight.original0, 0.parametrizations.weight.original1")},
    refuses=of_file("module '0' (ParametrizedLinear): the file format has no operator for it"),
)
def weight_norm():
    return perceptron(parametrizations.weight_norm(nn.Linear(6, 8))), numbers(6)


@kind(
    "`parametrizations.spectral_norm`",
    leaves={"nnrelief": no_layers("0.parametrizations.weight.original")},
    refuses=of_file("module '0' (ParametrizedLinear): the file format has no operator for it"),
)
def spectral_norm():
    return perceptron(parametrizations.spectral_norm(nn.Linear(6, 8))), numbers(6)


@kind(
    "the older `weight_norm` of hooks",
    leaves={"nnrelief": no_layers("0.weight_g, 0.weight_v")},
    refuses=of_file("module '0' (Linear): it holds weight_g, weight_v, which the file format does not know"),
)
def weight_norm_by_hooks():
    return perceptron(nn.utils.weight_norm(nn.Linear(6, 8))), numbers(6)


NOTHING = "{} has nothing to prune: wanted layers of kind linear or conv, found 0 before `include` and `exclude`"


@kind(
    "every layer under `weight_norm`",
    refuses={
        **of_all(NOTHING.format("Sequential"), "compaction", "weights"),
        **of_file("module '0' (ParametrizedLinear): the file format has no operator for it"),
    },
)
def all_weight_norm():
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 8)), nn.ReLU()), numbers(6)


@kind("frozen layers", leaves={"activity": "0"})
def frozen():
    model = perceptron(nn.Linear(8, 8))
    model[0].requires_grad_(False)
    return model, numbers(8)


@kind("a lazy module before its first call", refuses=of_all("module '0' (LazyLinear) has no weights before its first"))
def lazy():
    return perceptron(nn.LazyLinear(8)), numbers(6)


@kind("bfloat16", refuses={"engine": "input of bfloat16: wanted float32"})
def bfloat16():
    return perceptron(nn.Linear(6, 8)).to(torch.bfloat16), numbers(6).to(torch.bfloat16)


@kind("float16", refuses={"engine": "input of float16: wanted float32"})
def float16():
    return perceptron(nn.Linear(6, 8)).to(torch.float16), numbers(6).to(torch.float16)


@kind("float64", refuses={"engine": "input of float64: wanted float32"})
def float64():
    return perceptron(nn.Linear(6, 8)).double(), numbers(6).double()


@kind(
    "complex numbers",
    refuses={
        **of_all(NOTHING.format("Model"), "compaction"),
        **of_file("the program of Model does not run: CheckpointError: the program cannot be run: input x"),
        "weights": "layer.weight: unknown dtype 'complex64'",
    },
)
def complex_numbers():
    layer = nn.Linear(6, 3).to(torch.complex64)
    return Model(lambda m, x: m.layer(x).abs(), layer=layer), numbers(6).to(torch.complex64)


_NO_STATE = "0._packed_params.dtype of the model's state is a dtype: wanted a tensor"


@kind(
    "quantised by torch",
    refuses={**of_all(NOTHING.format("Sequential"), "compaction"), **of_file(_NO_STATE), "weights": _NO_STATE},
)
def quantised():
    return torch.ao.quantization.quantize_dynamic(perceptron(nn.Linear(6, 8)), {nn.Linear}), numbers(6)


@kind(
    "TorchScript",
    refuses={
        **of_all(NOTHING.format("RecursiveScriptModule"), "weights"),
        "compaction": "TorchScript has compiled the model, and no part of it can be narrowed: compact it before",
        **of_file("cannot trace RecursiveScriptModule, which TorchScript has compiled: take the model"),
    },
)
def scripted():
    return torch.jit.script(perceptron(nn.Linear(6, 8))), numbers(6)


_NO_SWEEPS = "pruned without dead-unit sweeps and without the rule for residual sums: cannot trace"


@kind(
    "a forward that decides by values",
    leaves={
        "activity": "mix",
        "nnrelief": f"{_NO_SWEEPS} Model.forward: TraceError: symbolically traced variables cannot be used",
        "compaction": "nothing was removed: cannot trace Model.forward",
    },
    refuses=of_file("cannot trace Model.forward: TraceError: symbolically traced variables cannot be used"),
)
def decides():
    def run(m, x):
        y = m.into(x).relu()
        return m.out(y if y.sum() > 0 else m.mix(y).relu())

    return Model(run, into=nn.Linear(6, 8), mix=nn.Linear(8, 8), out=nn.Linear(8, 3)), numbers(6)


@kind(
    "a forward of `*inputs`",
    leaves={
        "nnrelief": f"{_NO_SWEEPS} AnyNumber.forward",
        "compaction": "nothing was removed: cannot trace AnyNumber.forward",
    },
    refuses=of_file("cannot trace AnyNumber.forward: TraceError: Proxy object cannot be iterated. torch.fx"),
)
def any_number_of_inputs():
    return AnyNumber(
        lambda m, *x: m.out(m.into(x[0]).relu()), into=nn.Linear(6, 8), out=nn.Linear(8, 3)
    ), numbers(6)


@kind(
    "two inputs",
    refuses={
        "nnrelief": "batch 0 of the calibration data, of shape (12, 6) and torch.float32, does not go through Pair",
        "compaction": "example_input is a tuple: wanted one tensor, (samples, ...); wrap a model of other inputs",
        "engine": "2 inputs and 1 outputs as value: wanted one of each",
    },
)
def two_inputs():
    return Pair(
        lambda m, x, y: m.out((m.left(x) + m.right(y)).relu()),
        left=nn.Linear(6, 8), right=nn.Linear(4, 8), out=nn.Linear(8, 3),
    ), (numbers(6), numbers(4))  # fmt: skip


@kind(
    "a dict as input",
    refuses={
        "nnrelief": "batch 0 of the calibration data is a dict: wanted a tensor of inputs",
        "compaction": "example_input is a dict: wanted one tensor, (samples, ...); wrap a model of other inputs",
        **of_file("example_input is a dict: wanted a tensor, or a tuple of tensors"),
    },
)
def dict_input():
    return Model(
        lambda m, batch: m.out((m.left(batch["x"]) + m.right(batch["y"])).relu()),
        left=nn.Linear(6, 8), right=nn.Linear(4, 8), out=nn.Linear(8, 3),
    ), {"x": numbers(6), "y": numbers(4)}  # fmt: skip


@kind("a dict as output", refuses={"engine": "1 inputs and 2 outputs as dict: wanted one of each"})
def dict_output():
    return Model(
        lambda m, x: {"kind": m.kind(y := m.into(x).relu()), "place": m.place(y)},
        into=nn.Linear(6, 8), kind=nn.Linear(8, 3), place=nn.Linear(8, 2),
    ), numbers(6)  # fmt: skip


@kind("a tuple as output", refuses={"engine": "1 inputs and 2 outputs as tuple: wanted one of each"})
def tuple_output():
    return Model(
        lambda m, x: (m.kind(y := m.into(x).relu()), m.place(y)),
        into=nn.Linear(6, 8), kind=nn.Linear(8, 3), place=nn.Linear(8, 2),
    ), numbers(6)  # fmt: skip


@kind("nothing to prune", refuses=of_all(NOTHING.format("Sequential"), "compaction", "file", "weights", "engine"))
def nothing_to_prune():
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6)), numbers(6)


_SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


def untraced(model, compaction="nothing was removed"):
    return {
        "leaves": {
            "nnrelief": f"{_NO_SWEEPS} {model}.forward",
            "compaction": f"{compaction}: cannot trace {model}.forward",
        },
        "refuses": of_file(f"cannot trace {model}.forward"),
        "needs": "transformers",
    }


@kind("BERT for classification, of Hugging Face", **untraced("BertForSequenceClassification"))
def bert():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=20, max_position_embeddings=8, num_labels=3, **_SIZES)
    return BertForSequenceClassification(config), words()


@kind("BERT with an output layer tied to its embedding", **untraced("BertForMaskedLM"))
def bert_masked():
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig(vocab_size=20, max_position_embeddings=8, **_SIZES)), words()


@kind("ViT, of Hugging Face", **untraced("ViTForImageClassification", "only parts of the model were compacted"))
def vit():
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=3, **_SIZES)), numbers(3, 8, 8)


@kind("GPT-2, of Hugging Face, whose layers are `Conv1D` of its own", **untraced("GPT2LMHeadModel"))
def gpt_2():
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8, "vocab_size": 20}
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)), words()

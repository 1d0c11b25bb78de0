
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synaptree.format.errors import FormatError
from synaptree.format.operators import OPERATORS
from synaptree.format.program import Input, Program, Step, check, check_name, filled
from synaptree.format.steps import read_program, write_program
from synaptree.format.wire import Reader

X = Input("x", (3, 8, 8))


def one(op, *, shapes=None, inputs=(0,), dtypes=None, name="m", **options):
    """Check a program of one step of one input."""
    check(Program((X,), (Step(op, name, inputs, options),), (1,)), shapes or {}, dtypes)


def parts(**shapes):
    return {f"m.{name}": shape for name, shape in shapes.items()}


NORM = parts(weight=(4,), bias=(4,), running_mean=(4,), running_var=(4,), num_batches_tracked=())


@pytest.mark.parametrize(("op", "shapes", "options"), [
    ("linear", parts(weight=(2, 3)), {}),
    ("linear", parts(weight=(2, 3), bias=(2,)), {}),
    ("conv2d", parts(weight=(4, 1, 3, 3), bias=(4,)), {"groups": 2, "stride": (2, 2)}),
    ("conv1d", parts(weight=(4, 3, 3)), {"same": True, "dilation": (2,)}),
    ("conv_transpose2d", parts(weight=(4, 3, 3, 3), bias=(6,)), {"groups": 2}),  # 3 x 2 outputs
    ("batch_norm2d", NORM, {}),
    ("batch_norm2d", {}, {"channels": 4, "momentum": None}),
    ("instance_norm1d", parts(weight=(4,), bias=(4,)), {"channels": 4}),
    ("group_norm", parts(weight=(6,)), {"groups": 3}),
    ("group_norm", {}, {"groups": 3, "channels": 6}),
    ("layer_norm", parts(weight=(5, 6)), {}),
    ("layer_norm", {}, {"shape": (5, 6)}),
    ("prelu", parts(weight=(3,)), {}),
    ("embedding", parts(weight=(9, 2)), {"padding_idx": -1}),
    ("shortcut", parts(scale=(6,)), {"in_channels": 3, "stride": 2}),
    ("clamp", {}, {"min": 0}),
    ("sub", {}, {"number": 1, "flipped": True}),
    ("upsample", {}, {"scales": (2, 2), "mode": "bilinear", "align_corners": False}),
])
def test_steps_whose_tensors_and_options_fit_are_accepted(op, shapes, options):
    one(op, shapes=shapes, **options)
    with pytest.raises(FormatError, match="reads value 1, wanted one below its own, 1"):
        one(op, shapes=shapes, inputs=(1,), **options)


@pytest.mark.parametrize(("op", "shapes", "options", "message"), [
    ("conv4d", {}, {}, "step 0, conv4d 'm': unknown operator 'conv4d'"),
    ("relu", {}, {"slope": 1}, "relu 'm': unknown option 'slope'. Known: none"),
    ("leaky_relu", {}, {"slope": 1}, "unknown option 'slope'. Known: negative_slope"),
    ("softmax", {}, {}, "option 'dim' is missing: wanted int"),
    ("softmax", {}, {"dim": "1"}, "option 'dim': wanted int, got '1'"),
    ("linear", {}, {}, "linear 'm': its weight is missing"),
    ("linear", parts(weight=(2, 3, 1)), {}, "its weight has shape \\(2, 3, 1\\), wanted 2 axes"),
    ("linear", parts(weight=(2, 3), bias=(3,)), {}, "its bias has shape \\(3,\\), wanted \\(2,\\)"),
    ("conv2d", parts(weight=(4, 3, 3)), {}, "wanted 4 axes"),
    ("conv2d", parts(weight=(4, 3, 3, 3)), {"groups": 3}, "wanted an axis 0 that 3 groups divide"),
    ("conv2d", parts(weight=(4, 3, 3, 3)), {"stride": (1,)}, "option 'stride': wanted 2 ints at least 1"),
    ("conv2d", parts(weight=(4, 3, 3, 3)), {"same": True, "stride": (2, 1)}, "padding 'same' goes with a stride of 1"),
    ("conv2d", parts(weight=(4, 3, 3, 3)), {"same": True, "padding": (0, 1)}, "and no padding of its own"),
    ("conv_transpose1d", parts(weight=(4, 3, 3)), {"groups": 3}, "wanted an axis 0 that 3 groups divide"),
    ("conv_transpose1d", parts(weight=(4, 3, 3), bias=(4,)), {}, "its bias has shape \\(4,\\), wanted \\(3,\\)"),
    ("batch_norm1d", {}, {}, "0 channels, wanted"),
    ("batch_norm1d", parts(num_batches_tracked=()), {}, "0 channels, wanted"),
    ("batch_norm1d", NORM, {"channels": 5}, "5 channels, wanted what its parts have"),
    ("batch_norm1d", NORM | parts(bias=(3,)), {}, "its bias has shape \\(3,\\), wanted \\(4,\\)"),
    ("batch_norm1d", NORM | parts(num_batches_tracked=(1,)), {}, "wanted 0 axes"),
    ("group_norm", parts(weight=(6,)), {"groups": 4}, "6 channels, wanted a number that 4 groups divide"),
    ("layer_norm", {}, {}, "shape is missing"),
    ("layer_norm", parts(weight=(5,)), {"shape": (6,)}, "its shapes are"),
    ("embedding", parts(weight=(9, 2)), {"padding_idx": 9}, "padding_idx 9, wanted one of 9 rows"),
    ("shortcut", parts(scale=(6,)), {"in_channels": 7}, "7 channels come in, wanted at most the 6"),
    ("add", {}, {}, "wanted two values, or one and a number"),
    ("clamp", {}, {}, "wanted min or max"),
    ("pad", {}, {"pads": (1, 1, 1)}, "wanted an even number of pads"),
    ("upsample", {}, {}, "wanted sizes or scales"),
    ("upsample", {}, {"sizes": (2,), "scales": (2,)}, "wanted sizes or scales"),
    ("constant", {"m": (3,)}, {}, "wanted 0 values, got 1"),
    ("matmul", {}, {}, "wanted 2 values, got 1"),
])
def test_steps_that_do_not_fit_are_refused_with_number_operator_and_name(op, shapes, options, message):
    with pytest.raises(FormatError, match=message):
        one(op, shapes=shapes, **options)


def test_a_sum_of_two_values_takes_no_number():
    steps = (Step("add", "", (0, 0), {"number": 1}),)
    with pytest.raises(FormatError, match="wanted two values, or one and a number"):
        check(Program((X,), steps, (1,)), {})
    with pytest.raises(FormatError, match="flipped without a number"):
        check(Program((X,), (Step("sub", "", (0, 0), {"flipped": True}),), (1,)), {})


def test_a_constant_stands_under_its_own_name():
    steps = (Step("constant", "m", (), {}),)
    check(Program((), steps, (0,)), {"m": (3, 4)})
    with pytest.raises(FormatError, match="its tensor is missing"):
        check(Program((), steps, (0,)), {"m.weight": (3, 4)})


@pytest.mark.parametrize(("dtypes", "message"), [
    ({"m.weight": "int64"}, "m.weight is int64, wanted float32 or"),
    ({"m.num_batches_tracked": "float32"}, "m.num_batches_tracked is float32, wanted int64"),
])
def test_tensors_have_the_kind_of_numbers_their_operator_wants(dtypes, message):
    one("batch_norm2d", shapes=NORM, dtypes={"m.weight": "float16"})
    with pytest.raises(FormatError, match=message):
        one("batch_norm2d", shapes=NORM, dtypes=dtypes)


def test_a_name_called_twice_is_one_module_with_one_operator_and_one_set_of_options():
    twice = (Step("elu", "act", (0,)), Step("elu", "act", (1,), {"alpha": 1}))  # 1 is the default
    check(Program((X,), twice, (2,)), {})
    for other in (Step("elu", "act", (1,), {"alpha": 2}), Step("celu", "act", (1,))):
        with pytest.raises(FormatError, match=f"step 1, {other.op} 'act': another step has this name"):
            check(Program((X,), (twice[0], other), (2,)), {})


@pytest.mark.parametrize(("steps", "shapes", "message"), [
    ((Step("linear", "a", (0,)),), {"a.weight": (2, 3), "a": (1,)}, "'a.weight' is a name below 'a'"),
    ((Step("relu", "a", (0,)),), {"a": (1,)}, "'a' is the name of a tensor and of a step, relu"),
    ((Step("relu", "a", (0,)), Step("relu", "a.b.c", (0,))), {}, "'a.b.c' is a name below 'a', which is no container"),
    ((Step("constant", "a"), Step("relu", "a.b", (0,))), {"a": (1,)}, "'a.b' is a name below 'a'"),
])
def test_no_tensor_or_module_stands_where_another_thing_is(steps, shapes, message):
    with pytest.raises(FormatError, match=message):
        check(Program((X,), steps, (1,)), shapes)


@pytest.mark.parametrize(("program", "message"), [
    (Program((X, X), (), (0,)), "wanted each name once"),
    (Program((Input("a.b", ()),), (), (0,)), "input 'a.b': wanted letters"),
    (Program((Input("x\n", ()),), (), (0,)), "wanted letters"),
    (Program((Input("1x", ()),), (), (0,)), "the first no digit"),
    (Program((Input("x", (), "complex64"),), (), (0,)), "unknown dtype 'complex64'"),
    (Program((Input("x", (-1,)),), (), (0,)), "none negative"),
    (Program((Input("x", (1,) * 17),), (), (0,)), "at most 16 axes"),
    (Program((X,), (), ()), "wanted one value, got 0"),
    (Program((X,), (), (), "tuple"), "wanted at least one value, got 0"),
    (Program((X,), (), (0, 0)), "wanted one value, got 2"),
    (Program((X,), (), (1,)), "outputs: value 1, wanted one of 0 to 0"),
    (Program((X,), (), (-1,)), "outputs: value -1"),
    (Program((X,), (), (0,), "set"), "unknown way to return outputs 'set'"),
    (Program((X,), (), (0,), "dict"), "wanted a key each for dict alone"),
    (Program((X,), (), (0,), "list", ("a",)), "wanted a key each for dict alone"),
    (Program((X,), (), (0, 0), "dict", ("a", "a")), "wanted a key each"),
    (Program((X,), (Step("linear", "", (0,)),), (1,)), "wanted a name, under which its tensors stand"),
    (Program((X,), (Step("relu", "a..b", (0,)),), (1,)), "wanted parts of a-z"),
    (Program((X,), (Step("cat", "", (0,) * 256),), (1,)), "wanted 1 to 255 values, got 256"),
    (Program((X,), (Step("relu", "", (-1,)),), (1,)), "reads value -1"),
])
def test_programs_that_break_a_rule_are_refused(program, message):
    with pytest.raises(FormatError, match=message):
        check(program, {})


@pytest.mark.parametrize("name", [
    "", ".", "a.", ".a", "a b", "a/b", "ü", "a\n", "a" * 256, "__import__('os')", "a;b", "a." * 32 + "a",
])
def test_names_that_are_no_dotted_path_are_refused(name):
    with pytest.raises(FormatError, match="wanted parts of a-z, A-Z, 0-9, _ and -, joined by dots"):
        check_name(name)
    check_name("a." * 31 + "a")


def test_filled_gives_every_option_at_its_default_or_as_said():
    found = filled(Step("max_pool2d", options={"kernel_size": [2, 2], "ceil_mode": True}))
    assert found == {"kernel_size": (2, 2), "stride": None, "padding": (0, 0), "dilation": (1, 1), "ceil_mode": True}


def values(option):
    """Return values an option takes."""
    least = -5 if option.least is None else option.least
    most = 40 if option.most is None else option.most
    ints = st.integers(int(least), int(most))
    floats = st.floats(least, most)
    several = {"min_size": option.length or 1, "max_size": option.length or 4}
    made = {
        "bool": st.booleans(), "int": ints, "float": floats, "number": ints | floats,
        "text": st.sampled_from(option.choices or ("",)), "ints": st.lists(ints, **several).map(tuple),
        "floats": st.lists(floats, **several).map(tuple),
    }[option.kind]
    return st.none() | made if option.optional else made


@st.composite
def steps(draw, own):
    operator = OPERATORS[draw(st.sampled_from(sorted(OPERATORS)))]
    least, most = operator.values
    inputs = draw(st.lists(st.integers(0, own - 1), min_size=least, max_size=min(most, 3)))
    names = [name for name, option in operator.options.items() if option.required or draw(st.booleans())]
    options = {name: draw(values(operator.options[name])) for name in names}
    name = draw(st.sampled_from(["a", "a.b", "", "layer1.0.conv1", "layer1.0.bn"]))
    return Step(operator.name, name, tuple(inputs), options)


@given(st.data())
def test_any_program_comes_back_with_every_option_the_same(data):
    given_ = (X, Input("index", (), "int64"))
    made = [data.draw(steps(len(given_) + number)) for number in range(data.draw(st.integers(0, 6)))]
    outputs = tuple(data.draw(st.lists(st.integers(0, len(made) + 1), min_size=1, max_size=3)))
    program = Program(given_, tuple(made), outputs, "dict", tuple("äbc"[: len(outputs)]))
    written = write_program(program)
    reader = Reader(written)
    found = read_program(reader)
    reader.end()
    assert (found.inputs, found.outputs, found.returns, found.keys) == (given_, outputs, "dict", program.keys)
    for before, after in zip(program.steps, found.steps, strict=True):
        assert (before.op, before.name, before.inputs) == (after.op, after.name, after.inputs)
        assert filled(before) == filled(after)
    assert write_program(found) == written


DOTTED = st.lists(st.sampled_from(["a", "a-", "-", "b"]), min_size=1, max_size=3).map(".".join)


@given(st.sets(DOTTED, max_size=5), st.sets(DOTTED, max_size=5))
def test_no_name_stands_below_a_tensor_and_no_step_below_a_step(steps, tensors):
    program = Program((X,), tuple(Step("relu", name, (0,)) for name in sorted(steps)), (0,))
    below = any(one.startswith(f"{above}.") for above in tensors for one in steps | tensors)
    below |= any(one.startswith(f"{above}.") for above in steps for one in steps)
    if below or steps & tensors:
        with pytest.raises(FormatError, match="is a name below" if below else "is the name of a tensor and of a step"):
            check(program, dict.fromkeys(tensors, (1,)))
    else:
        check(program, dict.fromkeys(tensors, (1,)))


def test_a_clash_is_found_among_many_long_names():
    above = ".".join(["xxxx"] * 30)
    steps = tuple(Step("relu", f"{above}.{number}", (0,)) for number in range(20_000))
    check(Program((X,), steps, (0,)), {})
    with pytest.raises(FormatError, match="is a name below"):
        check(Program((X,), (*steps, Step("relu", f"{above}.777.a", (0,))), (0,)), {})


def test_a_program_by_hand():
    # 1 input: "x", float32, shape (3,); 2 steps: operator 1 (linear), name: 0 letters of the one before, then "fc",
    # 1 value 1 back, no options; operator 34 (leaky_relu), name "", 1 value 1 back, option 0: float 0.5; value 2
    steps = (Step("linear", "fc", (0,)), Step("leaky_relu", "", (1,), {"negative_slope": 0.5}))
    written = write_program(Program((Input("x", (3,)),), steps, (2,)))
    assert written == bytes([
        1, 1, ord("x"), 0, 1, 3, 2, 1, 0, 2, *b"fc", 1, 1, 0, 34, 0, 0, 1, 1, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0xE0, 0x3F,
        0, 1, 2,
    ])


@pytest.mark.parametrize(("data", "message"), [
    ([0, 1, 120], "step 0: unknown operator 120"), ([0, 1, 32, 0, 0, 0, 1, 5], "wanted a number up to 0"),
    ([0, 1, 34, 0, 0, 0, 1, 5], "leaky_relu: unknown option 5. Known: 0 to 0"),
    ([1, 1, 120, 10], "unknown dtype 10"), ([1, 1, 120, 0, 17], "wanted a number up to 16, got 17"),
    ([0, 0, 4], "unknown way to return outputs 4"), ([9, 1], "number up to 2, got 9"), ([1, 1, 255], "no UTF-8"),
    ([0, 1, 32, 1], "wanted a number up to 0, got 1"), ([0, 1, 34, 0, 0, 0, 1, 0, 8, 0], "option of dict"),
    ([0, 1, 34, 0, 0, 0, 1, 0, 9, 0], "an array in an option"),
])
def test_bytes_that_are_no_program_are_refused(data, message):
    with pytest.raises(FormatError, match=message):
        read_program(Reader(bytes(data)))

"""What all tests share: names in doctests, one thread, one seed, and patience with slow machines."""

import os
import signal
import sys
from importlib.util import find_spec

# read when torch is imported: threads that spin while they wait starve a busy neighbour
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import hypothesis
import pytest
import torch
from beartype import BeartypeConf
from beartype.claw import beartype_packages
from torch import nn

# In tests, calls within the library are checked against their type hints; an int may stand for a float, as in PEP 484.
# Left out: what tests call with wrong types on purpose, and modules that torch.fx traces with stand-ins.
CHECKED = ("artifact", "core.layer", "core.probe", "core.signal", "core.topology", "graph", "rules.allocate",
           "rules.structure", "train.network")  # fmt: skip
beartype_packages(tuple(f"synaptree.{name}" for name in CHECKED), conf=BeartypeConf(is_pep484_tower=True))

# its example is run by `make test-integrations`, which installs the library
collect_ignore = [] if find_spec("tensorboard") else ["src/synaptree/integrate/tensorboard.py"]

# what a shell starts in the background ignores Ctrl-C, and so would the commands that tests start and stop
signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)
hypothesis.settings.register_profile("patient", deadline=None, max_examples=50)
hypothesis.settings.load_profile("patient")


@pytest.fixture(autouse=True, scope="session")
def _names_in_doctests(doctest_namespace):
    doctest_namespace.update(torch=torch, nn=nn)


@pytest.fixture(autouse=True)
def seed():
    """Seed torch before every test, and say with what."""
    torch.manual_seed(0)
    return 0


@pytest.fixture(autouse=True)
def _accelerate_as_before():
    """Forget after a test the settings that Accelerate keeps for the whole process, such as a mixed precision."""
    yield
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)

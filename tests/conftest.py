"""What all tests share: one thread, and tiny random models in local folders."""

import shutil
from functools import cache
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Same numbers and no fights over cores, however many test processes run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """`tiny_folder(kind)`: the folder of a random model of that kind in float64, made once a session."""
    import tiny  # and with it transformers: only for the tests that need it

    return cache(lambda kind: tiny.save(kind, tmp_path_factory.mktemp(kind)))


@pytest.fixture
def tiny_model(tiny_folder):
    """`tiny_model(kind)`: a fresh model of that kind as plain transformers objects: .model, .tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    def load(kind):
        folder = tiny_folder(kind)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        return SimpleNamespace(model=model, tokenizer=AutoTokenizer.from_pretrained(folder), folder=folder)

    return load


@pytest.fixture(scope="session")
def moments():
    """Second moments for the tiny models."""
    from library import moments

    return moments()


@pytest.fixture
def paths(model):
    """`paths(method)` on a tiny model in float64."""
    import speed
    import tiny

    import kedit_lib as kedit

    moments = kedit.SecondMoments.from_tensors({i: c.double() for i, c in tiny.second_moments().items()})
    return lambda method: speed.Paths(model, method, moments, tiny.CONTEXTS)


@pytest.fixture
def copied(tiny_folder, tmp_path):
    """A tiny model's folder to be spoiled."""
    return shutil.copytree(tiny_folder("llama"), tmp_path / "model")


def pytest_generate_tests(metafunc):
    if "model" in metafunc.fixturenames and hasattr(metafunc.module, "MODELS"):
        metafunc.parametrize("model", metafunc.module.MODELS, indirect=True, ids=lambda model: model[0])


@pytest.fixture
def model(tiny_folder, request):
    """A fresh tiny model as the library's: a Llama in float64, or what the test file names as MODEL = kind, dtype, or
    each of its MODELS."""
    import kedit_lib as kedit

    kind, dtype = getattr(request, "param", getattr(request.module, "MODEL", ("llama", torch.float64)))
    return kedit.load_model(tiny_folder(kind), dtype=dtype)


@pytest.fixture(scope="module")
def smollm2():
    """The pretrained model, where it can be fetched."""
    import kedit_lib as kedit

    try:
        return kedit.load_model("smollm2")
    except kedit.KeditError as error:
        if "cannot be fetched" in str(error):
            pytest.skip(str(error))
        raise

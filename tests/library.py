"""What many test files ask of the library."""

import pytest

import kedit_lib as kedit


def method(name, values):
    """The method with those of the values that it has."""
    made = kedit.method_class(name)
    return made(**{field: value for field, value in values.items() if field in made.model_fields})


def parameters(model):
    """{name: parameter} of the transformers model inside the library's."""
    return dict(model.hf.named_parameters())


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in parameters(model).items()}


def refused(call, *says):
    """`call()` raises KeditError: one line that holds every one of `says`."""
    with pytest.raises(kedit.KeditError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in says:
        assert part in message, message
    assert isinstance(caught.value, ValueError)

"""What to say of objects that are given as a model and hold no bytes: what they are, and how to make bytes of them.

Classes are recognized by their name and their package's, so that no framework is imported.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice

_TORCH_SAVE = "torch.save it into an io.BytesIO, and give the buffer's getvalue()"

# Package and name of a class; what its objects are; how to make bytes of them.
_KNOWN = (
    (
        "torch",
        "Tensor",
        "a PyTorch tensor",
        f"{_TORCH_SAVE}, or give tensor.detach().cpu().numpy(), which is sent without its shape",
    ),
    (
        "torch",
        "Module",
        "a PyTorch module",
        f"take its state_dict(), {_TORCH_SAVE}, or give safetensors.torch.save(module.state_dict())",
    ),
    ("torch", "Optimizer", "a PyTorch optimizer", f"take its state_dict(), {_TORCH_SAVE}"),
    ("sklearn", "BaseEstimator", "a scikit-learn model", "give pickle.dumps(model)"),
    ("keras", "Model", "a Keras model", "save it as a .keras file, and give that file's pathlib.Path"),
    ("pandas", "DataFrame", "a pandas DataFrame", "give dataframe.to_parquet()"),
)

_LOOKED_AT = 100
"""How many items of a container are looked at."""

_DEPTH = 4
"""How many containers within each other are looked into: a checkpoint holds a state_dict of lists of tensors."""


def unsendable(model: object) -> str | None:
    """Why an object can't be sent, and what to give in its place; None for what may be pieces of a model."""
    for what, how in _recognized(model):
        return f"{what} can't be sent as it is: {how}"
    if isinstance(model, (Mapping, AbstractSet)) or (
        isinstance(model, Sequence) and not all(map(_has_buffer, islice(model, _LOOKED_AT)))
    ):
        return f"{_article(model)} can't be sent as it is: {_of_container(model)}"
    return None


def named(thing: object) -> str:
    """What an object is, for a message."""
    return next((what for what, _ in _recognized(thing)), _article(thing))


def _recognized(thing: object) -> Iterator[tuple[str, str]]:
    for package, name in _classes(thing):
        for of, known, what, how in _KNOWN:
            if (of, known) == (package, name):
                yield what, how


def _classes(thing: object) -> Iterator[tuple[str, str]]:
    """The packages and names of an object's class and of its base classes."""
    for cls in type(thing).__mro__:
        yield str(cls.__module__).partition(".")[0], cls.__name__


def _article(thing: object) -> str:
    if thing is None:
        return "None"
    if isinstance(thing, type):
        return f"the class {thing.__name__}"
    name = type(thing).__name__
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"


def _of_container(model: Collection[object]) -> str:
    packages = {package for item in _items(model, _DEPTH) for package, _ in _classes(item)}
    if "torch" in packages:
        return f"{_TORCH_SAVE}; a state_dict may also be given as safetensors.torch.save(state_dict)"
    if "numpy" in packages:
        return "numpy.savez its arrays into an io.BytesIO, and give the buffer's getvalue()"
    return "give json.dumps(it).encode() or pickle.dumps(it), for example"


def _items(container: Collection[object], depth: int) -> Iterator[object]:
    """What a container holds, and what the containers in it hold."""
    for item in islice(container.values() if isinstance(container, Mapping) else container, _LOOKED_AT):
        yield item
        if depth and isinstance(item, (Mapping, list, tuple)):
            yield from _items(item, depth - 1)


def _has_buffer(thing: object) -> bool:
    try:
        memoryview(thing)  # type: ignore[arg-type]
    except TypeError:
        return False
    except (ValueError, BufferError):
        pass  # it has one, which the caller judges
    return True

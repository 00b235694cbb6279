"""Properties of models and versions: on the wire they are names and texts.

Numbers and truth values are taken, too, and written so that they can be read back: ``int()`` and ``float()`` give the same number, and true
and false are written as in JSON. NumPy's and other libraries' scalars count as what their ``item()`` gives.
"""

from __future__ import annotations

from collections.abc import Mapping

Properties = Mapping[str, str | int | float | bool]
"""What may be given as properties. They are always returned as text."""


def as_text(properties: Properties) -> dict[str, str]:
    """Properties as they are sent.

    Raises:
        TypeError: the properties are no mapping of text to text, numbers and truth values.
        ValueError: a name is empty, or a text isn't valid Unicode.
    """
    if not isinstance(properties, Mapping):
        raise TypeError(f"properties have to be a dict, and these are of type {type(properties).__name__}")
    return {_name(name): _value(name, value) for name, value in properties.items()}


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"the name of a property has to be text, and {name!r} is of type {type(name).__name__}")
    if not name:
        raise ValueError("the name of a property can't be empty")
    return _unicode(name, name)


def _value(name: str, value: object) -> str:
    if getattr(value, "ndim", None) == 0:  # a scalar
        item = getattr(value, "item", None)
        value = item() if callable(item) else value
    if isinstance(value, str):
        return _unicode(name, value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)
    raise TypeError(
        f"the value of property {name!r} has to be text, a number or a truth value, and is of type {type(value).__name__}: "
        "make text of it, with json.dumps for example"
    )


def _unicode(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"property {name!r} isn't valid Unicode: it holds half a surrogate pair") from None
    return text

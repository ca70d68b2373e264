"""What a scope of a registry forgets."""

import pytest

from disue.errors import ConfigError
from disue.registry import Registry


def test_what_is_registered_in_a_scope_is_forgotten_and_what_stood_in_gives_its_place_back() -> None:
    registry = Registry[int]("model")
    registry.register("a")(1)
    with registry.scope({"a": 10}):
        registry.register("b")(2)
        assert dict(registry) == {"a": 10, "b": 2}
    assert dict(registry) == {"a": 1}
    with pytest.raises(ConfigError, match="^model: 'b' does not exist.*; choose from a$"):
        registry["b"]
    registry.register("b")(3)  # the name is free again

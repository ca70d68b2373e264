"""The kinds of what a client keeps from round to round."""

import pytest
import torch

from client_app.memory import Trained, memory_of
from disue.errors import WireError
from disue.models import State


def model(value: float) -> State:
    return {"body.weight": torch.full((2,), value), "head.weight": torch.full((2, 2), value)}


def test_a_control_variate_by_hand() -> None:
    """One parameter: c_i - c + (x - y) / (K eta), and the drift c - c_i."""
    memory, start = memory_of("control-variate"), {"w": torch.tensor([1.0])}
    first = memory.keep(start, Trained({"w": torch.tensor([0.4])}, 3, 0.1), None, {})
    assert float(first["w"]) == pytest.approx(0.6 / 0.3)
    shared = {"w": torch.tensor([0.5])}
    prepared = memory.prepare(start, first, shared)
    assert prepared.drift is not None
    assert float(prepared.drift["w"]) == pytest.approx(0.5 - 2.0)
    again = memory.keep(start, Trained({"w": torch.tensor([0.7])}, 3, 0.1), first, shared)
    assert float(again["w"]) == pytest.approx(2.0 - 0.5 + 0.3 / 0.3)


def test_a_personal_head_stays_at_home() -> None:
    memory = memory_of("personal-head")
    start, trained = model(1.0), model(2.0)
    assert memory.prepare(start, None, {}).start == start
    kept = memory.keep(start, Trained(trained, 1, 0.1), None, {})
    assert set(kept) == {"head.weight"}
    told = memory.told(start, trained)
    assert float(told["head.weight"][0, 0]) == 1.0
    assert float(told["body.weight"][0]) == 2.0
    own = memory.prepare(start, kept, {}).start
    assert float(own["head.weight"][0, 0]) == 2.0
    assert float(own["body.weight"][0]) == 1.0


def test_a_personal_model_is_the_second_that_is_trained() -> None:
    memory = memory_of("personal-model")
    sent, first, second = model(1.0), model(2.0), model(3.0)
    assert memory.prepare(sent, second, {}).plain
    assert memory.second(sent, None) == memory.personal(sent, None) == sent
    assert memory.second(sent, second) == memory.personal(sent, second) == second
    assert memory.keep(sent, Trained(second, 1, 0.1), None, {}) == second
    assert memory.told(sent, first) == first
    assert memory_of("control-variate").second(sent, first) is None
    assert memory_of("control-variate").personal(sent, first) == sent


def test_a_kind_that_there_is_not_is_one_line() -> None:
    with pytest.raises(
        WireError, match="the request's memory is 'diary'; there are control-variate, personal-head, personal-model"
    ):
        memory_of("diary")

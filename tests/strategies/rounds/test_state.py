"""What is put back is what there was: the same objects, with the same content."""

from typing import Any, ClassVar

import torch

from strategies.distillation.adam import Adam
from strategies.rounds.state import Snapshot, state_of


class Part:
    stateful: ClassVar[tuple[str, ...]] = ("model", "models", "names", "pair", "count", "network", "optimizer", "inner")

    def __init__(self, inner: "Part | None" = None) -> None:
        self.model = {"w": torch.ones(2)}
        self.models: list[Any] = [self.model, {"w": torch.zeros(2)}]
        self.names = {"a"}
        self.pair = ([1], "b")
        self.count = 3
        self.network = torch.nn.Linear(2, 1)
        self.optimizer = Adam(self.network.parameters())
        self.inner = inner

    def move(self) -> None:
        self.models[0] = {"w": torch.full((2,), 7.0)}
        self.models.append(self.model)
        self.model["v"] = torch.ones(1)
        self.names.add("c")
        self.pair[0].append(2)
        self.count += 1
        self.optimizer.step([torch.ones_like(p) for p in self.network.parameters()], 0.1)
        if self.inner:
            self.inner.move()


def seen(part: Part) -> Any:
    state = state_of(part)
    network = {name: tensor.tolist() for name, tensor in state.pop("network").items()}
    optimizer = {name: [tensor.tolist() for tensor in tensors] for name, tensors in state.pop("optimizer").items()}
    inner = seen(part.inner) if part.inner else None
    return repr(state | {"inner": None}), network, optimizer, inner


def test_everything_is_as_it_was() -> None:
    part = Part(Part())
    before, model, inner, pair = seen(part), part.model, part.inner, part.pair
    snapshot = Snapshot(part)
    part.move()
    part.inner, part.pair = Part(), ([5], "d")
    assert seen(part) != before
    snapshot.put_back()
    assert seen(part) == before
    assert part.model is model is part.models[0]
    assert part.inner is inner
    assert part.pair is pair
    snapshot.put_back()
    assert seen(part) == before


def test_what_is_left_out_stays_as_it_is_now() -> None:
    part = Part(Part())
    snapshot = Snapshot(part, without=(part.inner,))
    part.move()
    inner = seen(part.inner)  # type: ignore[arg-type]
    snapshot.put_back()
    assert part.count == 3
    assert seen(part.inner) == inner  # type: ignore[arg-type]

"""What clients told in earlier rounds counts in the feature space of this one."""

from dataclasses import replace

import pytest
import torch
from tests_support import numbered_classes

from client_app.describe import make_signature
from disue.covariance import MOST_FEATURES, from_triangle, looked_at, triangle_size
from disue.data import Examples
from disue.fields import LARGEST_COVARIANCE, LARGEST_FEATURE
from disue.models import State
from disue.signature import Signature
from strategies.distillation.discriminant import discriminant_of
from strategies.distillation.knowledge import Knowledge, features_of
from strategies.distillation.server import Server

CPU = torch.device("cpu")
SHAPE = (1, 4, 4)
TASK = numbered_classes(3, SHAPE)


@pytest.fixture
def server() -> Server:
    return Server(TASK, "mlp", CPU, seed=0)


def some_inputs(seed: int, samples: int = 300) -> torch.Tensor:
    return torch.randn(samples, *SHAPE, generator=torch.Generator().manual_seed(seed))


def told(server: Server, state: State, seed: int) -> Signature:
    """What a client tells under a universal expert."""
    model = server.build("mlp")
    model.load_state_dict(state)
    data = Examples(some_inputs(seed, 60), torch.arange(60) % 3)
    return make_signature(model, data, CPU, TASK, covariance="all")


def scaled(state: State, factor: float) -> State:
    """The model whose features are so many times those of this one."""
    last = max((name for name in state if name.startswith("body") and name.endswith("weight")), key=str)
    names = {last, last.replace("weight", "bias")}
    return {name: tensor * factor if name in names else tensor for name, tensor in state.items()}


def knowledge(server: Server, names: str = "ab") -> Knowledge:
    state = server.initial("mlp")
    own = {name: told(server, state, seed) for seed, name in enumerate(names)}
    return replace(Knowledge.nothing(), spaces={"mlp": state}).with_told(own, dict.fromkeys(names, "mlp"))


def test_who_was_not_sampled_stays_known_as_if_it_told_in_the_new_space(server: Server) -> None:
    known, after = knowledge(server), scaled(server.initial("mlp"), 2.0)
    moved = known.moved(server, {"mlp": after}, some_inputs(9))
    assert moved.spaces == {"mlp": after}
    fresh = moved.with_told({"b": told(server, after, 1)}, {"a": "mlp", "b": "mlp"})
    assert fresh.told.keys() == {"a", "b"}
    expected = told(server, after, 0)
    for name, seed in (("a", 0), ("b", 1)):
        now = told(server, after, seed)
        torch.testing.assert_close(fresh.told[name].prototypes, now.prototypes, atol=0.02, rtol=0.02)
        assert torch.equal(fresh.told[name].label_counts, now.label_counts)
    found = from_triangle(fresh.told["a"].covariance)
    torch.testing.assert_close(found, from_triangle(expected.covariance), atol=0.02, rtol=0.05)
    assert not torch.allclose(known.told["a"].prototypes, expected.prototypes, atol=0.02, rtol=0.02)


def test_in_another_universal_expert_it_is_nearer_to_what_it_would_tell_than_it_was(server: Server) -> None:
    """No affine map leads from one space to the other here."""
    known, after = knowledge(server), Server(TASK, "mlp", CPU, seed=1).initial("mlp")
    moved = known.moved(server, {"mlp": after}, some_inputs(9, 2000))
    for seed, name in enumerate("ab"):
        expected = told(server, after, seed).prototypes
        off, before = (float((own.told[name].prototypes - expected).norm()) for own in (moved, known))
        assert off < 0.25 * before


def test_in_the_same_space_nothing_moves(server: Server) -> None:
    known = knowledge(server)
    same = {name: tensor.clone() for name, tensor in server.initial("mlp").items()}
    assert known.moved(server, {"mlp": same}, None).told == known.told


def test_without_inputs_to_move_on_who_told_before_is_forgotten(server: Server) -> None:
    known, after = knowledge(server), scaled(server.initial("mlp"), 2.0)
    moved = known.moved(server, {"mlp": after}, None)
    assert not moved.told
    assert not moved.models
    fresh = moved.with_told({"b": told(server, after, 1)}, {"a": "mlp", "b": "mlp"})
    assert fresh.told.keys() == fresh.models.keys() == {"b"}


def test_each_architecture_has_a_space_of_its_own(server: Server) -> None:
    """What is told in one that stays the same stays, even without inputs."""
    small, large = server.initial("mlp"), server.initial("cnn")
    of_cnn = Signature(torch.ones(3), torch.ones(3, large["head.weight"].shape[1]))
    both = replace(knowledge(server, "a"), spaces={"mlp": small, "cnn": large})
    both = both.with_told({"c": of_cnn}, {"c": "cnn"})
    after = {"mlp": scaled(small, 2.0), "cnn": large}
    assert both.moved(server, after, None).told.keys() == {"c"}
    moved = both.moved(server, after, some_inputs(9))
    assert moved.told["c"] is both.told["c"]
    torch.testing.assert_close(moved.told["a"].prototypes, 2 * both.told["a"].prototypes, atol=0.02, rtol=0.02)


def test_who_tells_anew_is_known_by_that_and_who_is_left_out_not_at_all(server: Server) -> None:
    known = knowledge(server, "abc")
    fresh = told(server, server.initial("mlp"), 7)
    after = known.less(["a", "nobody"]).with_told({"b": fresh}, {"b": "mlp"})
    assert after.told.keys() == after.models.keys() == {"b", "c"}
    assert torch.equal(after.told["b"].prototypes, fresh.prototypes)
    assert after.told["c"] is known.told["c"]


def test_of_many_features_all_are_known(server: Server) -> None:
    """A head is calibrated in all of them; the discriminant looks at a projection."""
    size = MOST_FEATURES + 72
    points = torch.randn(3, size, generator=torch.Generator().manual_seed(0))
    own = Signature(torch.ones(3), points, torch.zeros(triangle_size(size)))
    known = Knowledge.nothing().with_told({"a": own}, {"a": "mlp"})
    assert torch.equal(known.told["a"].prototypes, points)
    assert torch.equal(discriminant_of([list(known.told.values())]).means[0], looked_at(points))


def test_features_are_those_that_clients_tell_of(server: Server) -> None:
    state = server.initial("mlp")
    x = some_inputs(0, 60)
    labels = torch.arange(60) % 3
    found = features_of(server, state, x, "mlp")
    means = torch.stack([found[labels == c].mean(dim=0) for c in range(3)])
    torch.testing.assert_close(told(server, state, 0).prototypes, means)


@pytest.mark.parametrize("factor", [1e15, 1e30, 1e38])
def test_in_the_space_of_a_model_that_diverged_what_is_known_stays_finite_and_in_its_range(
    server: Server, factor: float
) -> None:
    known, wild = knowledge(server), scaled(server.initial("mlp"), factor)
    moved = known.moved(server, {"mlp": wild}, some_inputs(7))
    for own in moved.told.values():
        assert own.covariance is not None
        assert float(own.prototypes.abs().max()) <= LARGEST_FEATURE
        assert float(own.covariance.abs().max()) <= LARGEST_COVARIANCE
    assert bool(features_of(server, wild, some_inputs(7), "mlp").isfinite().all())
    back = moved.moved(server, {"mlp": server.initial("mlp")}, some_inputs(7))
    assert all(bool(own.prototypes.isfinite().all()) for own in back.told.values())


def test_who_told_something_with_others_and_then_alone_is_alone_behind_it() -> None:
    own = Signature(torch.ones(2), torch.ones(2, 3))
    known = Knowledge.nothing().with_told({"a": own}, {"a": "mlp"}, {"a": ("a", "b"), "c": ("c", "d")})
    assert known.clients == {"a": ("a", "b")}
    assert known.behind("a") == ("a", "b")
    assert known.with_told({"a": own}, {"a": "mlp"}, {"a": ("a",)}).behind("a") == ("a",)
    assert not known.less(["a"]).clients

"""Features of an early layer: which layer, how many, and that they are the same for all."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from disue.covariance import LEAST_NUMBERS, MOST_FEATURES
from disue.early import EarlyLayers, early_features, num_early
from disue.models import build_model, get_state, num_features, num_parameters

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("model", "size"),
    [("mlp", 128), ("cnn", 32 * 7 * 7), ("lenet", 120)],
)
def test_it_is_what_the_last_layer_with_parameters_gets(model: str, size: int) -> None:
    network, x = build_model(model, (1, 28, 28), 10).eval(), torch.randn(3, 1, 28, 28)
    found = EarlyLayers(network.body)(x)
    assert found.shape == (3, size)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    learning = [layer for layer in network.body if any(True for _ in layer.parameters())]
    inputs: list[torch.Tensor] = []
    learning[-1].register_forward_hook(lambda layer, given, result: inputs.append(given[0]))
    network(x)
    torch.testing.assert_close(found, nn.functional.normalize(inputs[0].flatten(start_dim=1), dim=1))


class Forked(nn.Module):
    """A body that is no sequence of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 2), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what both say."""
        return torch.cat([self.left(x), self.right(x)], dim=1)


def test_of_a_body_with_one_layer_that_learns_it_is_what_that_gives_and_not_the_input() -> None:
    body, x = build_model("mlp-200", (1, 28, 28), 10).eval().body, torch.randn(3, 1, 28, 28)
    assert EarlyLayers(body)(x).shape == (3, 200)
    torch.testing.assert_close(EarlyLayers(body)(x), nn.functional.normalize(body(x), dim=1))


def test_of_a_body_that_is_no_sequence_of_layers_it_is_the_whole() -> None:
    body, x = Forked(), torch.randn(3, 4)
    torch.testing.assert_close(EarlyLayers(body)(x), nn.functional.normalize(body(x), dim=1))


def test_many_are_projected_alike_by_all_and_few_are_not() -> None:
    network, x = build_model("cnn", (1, 28, 28), 10, 3), torch.randn(5, 1, 28, 28)
    whole = EarlyLayers(network.body).eval()(x)
    torch.testing.assert_close(early_features(network, x, CPU, 4096), whole)
    few = early_features(network, x, CPU, 512)
    assert few.shape == (5, 512)
    assert torch.equal(few, early_features(build_model("cnn", (1, 28, 28), 10, 3), x, CPU, 512))
    apart, kept = torch.cdist(whole, whole), torch.cdist(few, few) * (whole.shape[1] / 512) ** 0.5
    assert bool(((kept - apart).abs() <= 0.25 * apart + 1e-6).all())


@given(st.integers(1, 4096), st.integers(1, 1000), st.sampled_from(["mlp", "cnn", "lenet"]))
def test_their_means_cost_ten_kilobytes_a_tenth_of_the_model_or_what_prototypes_do(
    wanted: int, strata: int, model: str
) -> None:
    network = get_state(build_model(model, (1, 28, 28), 10))
    least = min(num_features(network), MOST_FEATURES)
    count = num_early(wanted, strata, network)
    assert min(wanted, least) <= count <= wanted
    assert count * strata <= max(LEAST_NUMBERS, num_parameters(network) / 10, least * strata)

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from tests_support import numbered_classes

from client_app.describe import DESCRIPTIONS
from disue.data import Examples, build_federation
from disue.models import build_model
from disue.signature import Signature
from server_app.build import make_strategy
from server_app.config import RunConfig
from strategies.clustering.similarity import SIGNATURES, SignatureBook, SignatureKind, cosines, embed, running_means
from strategies.rounds.registry import ClientRegistry
from strategies.updates import ClientUpdate


def vector_of(name: str, update: ClientUpdate) -> torch.Tensor:
    from_update = SIGNATURES[name].from_update
    assert from_update is not None
    return from_update(update)


def test_embedding_keeps_all_cosines() -> None:
    vectors = torch.randn(9, 500, generator=torch.Generator().manual_seed(0))
    points = embed(cosines(list(vectors)))
    expected = torch.cosine_similarity(vectors[:, None].double(), vectors[None].double(), dim=-1)
    np.testing.assert_allclose(points @ points.T, expected.numpy(), atol=1e-9)


def test_embedding_of_equal_vectors_is_one_point() -> None:
    points = embed(cosines([torch.ones(4)] * 3))
    assert points.shape == (3, 1)
    assert np.ptp(points) < 1e-12


def test_embedding_of_nothing_but_zeros_is_one_point() -> None:
    assert embed(cosines([torch.zeros(4)] * 3)).tolist() == [[0.0]] * 3


def test_updates_are_relative_to_each_clients_own_start(make_updates) -> None:  # type: ignore[no-untyped-def]
    update: ClientUpdate = make_updates(1)[0]
    moved = replace(
        update,
        start={k: v + 3.0 for k, v in update.start.items()},
        state={k: v + 3.0 for k, v in update.state.items()},
    )
    for name in ("last-layer", "update"):
        torch.testing.assert_close(vector_of(name, update), vector_of(name, moved), atol=1e-5, rtol=0.0)


def test_last_layer_is_the_normalised_head_update(make_updates) -> None:  # type: ignore[no-untyped-def]
    update: ClientUpdate = make_updates(1)[0]
    delta = np.concatenate([(update.state[k] - update.start[k]).numpy().ravel() for k in ("head.weight", "head.bias")])
    np.testing.assert_allclose(vector_of("last-layer", update).numpy(), delta / np.linalg.norm(delta), atol=1e-6)


def test_in_the_whole_update_every_parameter_has_the_same_length(make_updates) -> None:  # type: ignore[no-untyped-def]
    update: ClientUpdate = make_updates(1)[0]
    vector = vector_of("update", update)
    assert float(vector.norm()) == pytest.approx(1.0)
    sizes = [tensor.numel() for tensor in update.state.values()]
    for part in vector.split(sizes):
        assert float(part.norm()) == pytest.approx(len(sizes) ** -0.5)


def test_prototypes_are_scaled_by_the_square_root_of_the_share(make_updates) -> None:  # type: ignore[no-untyped-def]
    signature = Signature(torch.tensor([3.0, 0.0, 1.0]), torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]]))
    vector = vector_of("prototypes", replace(make_updates(1)[0], signature=signature))
    expected = np.array([0.75**0.5, 0.0, 0.0, 0.0, 0.0, 2.0 * 0.25**0.5])
    np.testing.assert_allclose(vector.numpy(), expected / np.linalg.norm(expected), atol=1e-6)


def test_subspaces_lie_as_far_apart_as_their_principal_angles_say() -> None:
    """The chordal distance, from scipy's angles."""
    generator = torch.Generator().manual_seed(1)
    bases = [torch.linalg.qr(torch.randn(20, 3, generator=generator, dtype=torch.float64)).Q for _ in range(4)]
    bases.append(bases[0] @ torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q)
    points = embed(SIGNATURES["subspace"].gram(bases))
    for i in range(5):
        for j in range(i):
            angles = subspace_angles(bases[i].numpy(), bases[j].numpy())
            expected = np.sqrt(2.0 * np.mean(np.sin(angles) ** 2))
            assert np.linalg.norm(points[i] - points[j]) == pytest.approx(expected, abs=1e-6)
    assert np.linalg.norm(points[0] - points[4]) < 1e-6  # another basis of the same subspace


def test_what_is_not_made_from_updates_clients_can_describe() -> None:
    assert {name for name, kind in SIGNATURES.items() if kind.from_update is None} == set(DESCRIPTIONS)


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_the_server_knows_the_shape_of_what_clients_say(name: str) -> None:
    model, shape = build_model("mlp", (3, 4, 5), 7), SIGNATURES[name].shape
    task = numbered_classes(7, (3, 4, 5))
    told = DESCRIPTIONS[name](
        model, Examples(torch.rand(9, 3, 4, 5), torch.arange(9) % 7), torch.device("cpu"), task, True
    )
    assert shape is not None
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert shape(7, model.head.in_features, 60, parameters) == tuple(told.shape)


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({}, (10, 65)),
        ({"signature": "subspace"}, (64, 3)),
        ({"method": "pacfl"}, (64, 3)),
        ({"method": "stocfl"}, (1, 17_226)),
        ({"signature": "update"}, None),
        ({"method": "fedavg"}, None),
        ({"privacy": "secure", "sketch-size": 5}, (1, 5)),
    ],
    ids=str,
)
def test_each_method_is_told_the_shape(settings: dict[str, object], shape: tuple[int, int] | None) -> None:
    config = RunConfig.from_flower({"model": "mlp", **settings})
    made = make_strategy(config, ClientRegistry(0), build_federation(config, 4), torch.device("cpu"))
    assert made.descriptions.shape == shape


def test_the_book_remembers_a_running_mean_and_clients_that_were_not_sampled() -> None:
    first = {"client-10": torch.tensor([1.0, 0.0]), "client-2": torch.tensor([0.0, 1.0])}
    means = running_means(running_means({}, first, 0.25), {"client-10": torch.tensor([0.0, 1.0])}, 0.25)
    book = SignatureBook(SignatureKind(), means)
    assert book.names == ["client-2", "client-10"]
    points = embed(book.gram(book.names))
    assert float(points[0] @ points[1]) == pytest.approx(0.75 / np.hypot(0.25, 0.75))


def test_a_missing_signature_is_named(make_updates) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="client-0 sent no signature"):
        vector_of("prototypes", make_updates(1)[0])


@pytest.mark.parametrize("name", ["initial-prototypes", "subspace"])
def test_no_client_counts_for_more_by_the_length_of_what_it_says(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    bases = [torch.linalg.qr(torch.randn(20, 3, generator=generator))[0] for _ in range(4)]
    gram = SIGNATURES[name].gram
    longer = [*bases[:3], 1e6 * bases[3]]
    torch.testing.assert_close(gram(longer), gram(bases))
    torch.testing.assert_close(gram(bases[:2], longer), gram(bases[:2], bases))
    assert gram(longer).diagonal().tolist() == pytest.approx([1.0] * 4)

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disue.errors import DataError
from disue.tasks import DataSummary, ImageClassification, agree
from disue.tasks.classification import doubts

SHAPE = (1, 2, 2)


def summary(*class_names: str) -> DataSummary:
    return DataSummary(class_names, (0.5,), (0.25,))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 1000))
def test_the_agreed_mean_and_deviation_are_those_of_all_pixels_together(counts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    clients = [rng.beta(rng.uniform(0.2, 3), rng.uniform(0.2, 3), (count, 3, 4, 4)) for count in counts]
    told = [
        (len(x), DataSummary(("a", "b"), tuple(x.mean(axis=(0, 2, 3))), tuple(x.std(axis=(0, 2, 3))))) for x in clients
    ]
    task = agree(told, (3, 4, 4))
    pixels = np.concatenate(clients)
    np.testing.assert_allclose(task.mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(task.std, pixels.std(axis=(0, 2, 3)), rtol=1e-6)
    normalised = task.normalise(torch.from_numpy(pixels).float())
    assert float(normalised.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(normalised.std(correction=0)) == pytest.approx(1.0, abs=1e-3)


def test_classes_are_the_union_by_name_whoever_lacks_some() -> None:
    task = agree([(5, summary("10", "2")), (9, summary("1", "2"))], SHAPE)
    assert task.class_names == ("1", "2", "10")
    assert task.indices(("10", "2")).tolist() == [2, 1]


def test_named_classes_keep_their_order_and_others_are_refused() -> None:
    assert agree([(5, summary("b", "a"))], SHAPE, ("z", "b", "a")).class_names == ("z", "b", "a")
    with pytest.raises(DataError, match="classes that this run does not have: 'c'; it has 'a', 'b'; .* key 'classes'"):
        agree([(5, summary("c", "a"))], SHAPE, ("a", "b"))


def test_one_class_is_no_task() -> None:
    with pytest.raises(DataError, match="together have 1 class \\('a'\\); at least 2 are needed"):
        agree([(5, summary("a")), (3, summary("a"))], SHAPE)


def test_a_channel_without_variation_can_be_normalised() -> None:
    task = agree([(5, DataSummary(("a", "b"), (0.5,), (0.0,)))], SHAPE)
    assert bool(torch.isfinite(task.normalise(torch.full((2, *SHAPE), 0.5))).all())


def test_unknown_classes_of_a_client_are_named() -> None:
    task = ImageClassification(("a", "b"), SHAPE, (0.5,), (0.2,))
    with pytest.raises(DataError, match="does not have: 'c', 'd'; it has 'a', 'b'"):
        task.indices(("d", "a", "c"))


@pytest.mark.parametrize(
    ("classes", "examples", "doubtful"),
    [(214, 442, True), (214, 354, True), (10, 10, True), (9, 9, False), (10, 30, False), (100, 50000, False)],
)
def test_nearly_as_many_classes_as_examples_are_doubted(classes: int, examples: int, doubtful: bool) -> None:
    said = doubts(classes, examples)
    assert bool(said) == doubtful
    assert not doubtful or said.startswith(f"{classes} classes in {examples} examples; if the labels are quantities")

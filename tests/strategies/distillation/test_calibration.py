"""Heads trained on drawn features: what is drawn of whom, and what cannot be trained."""

import torch

from disue.models import build_model, get_state, same_model
from disue.signature import Signature
from strategies.distillation.calibration import CalibrationSettings, Calibrator, drawn

FEATURES = 64


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_of_a_class_with_less_than_one_example_nothing_is_drawn_unless_there_is_no_more_of_any() -> None:
    means, covariances = torch.eye(3), torch.zeros(3, 3, 3, dtype=torch.float64)
    features, labels = drawn(torch.tensor([0.001, 1.0, 40.0]), means, covariances, 4, rng())
    assert labels.tolist() == [1, 2] * 6
    torch.testing.assert_close(features, means[labels], rtol=0.0, atol=1e-9)
    assert set(drawn(torch.tensor([0.2, 0.0, 0.1]), means, covariances, 4, rng())[1].tolist()) == {0}


def test_a_model_whose_head_would_not_be_finite_stays_as_it_is_and_others_do_not() -> None:
    def telling(size: float) -> Signature:
        axes = torch.zeros(2, 1, FEATURES)
        return Signature(torch.ones(2), size * torch.eye(2, FEATURES), axes)

    model = get_state(build_model("mlp", (1, 8, 8), 2))
    calibrator = Calibrator(CalibrationSettings(calibration_learning_rate=1e3))
    wild, tame = calibrator.calibrated([model, model], [[telling(1e30)], [telling(1e-3)]], [rng(), rng()])
    assert same_model(wild, model)
    assert not same_model(tame, model)

"""What both sides know of ``privacy=dp``: what a reply releases, and what cannot be released.

A release is a vector that is no longer than its bound, with Gaussian noise of ``dp-noise`` times the bound in every
coordinate. Whatever a client's data are, the vector is at most twice the bound away: that is the sensitivity.
"""

import math

import numpy as np

from disue.config import ClientConfig

SENSITIVITY = 2.0
"""In bounds: how far apart the vectors of two clients can be."""

COVERED_DESCRIPTIONS = ("initial-prototypes",)
"""Those of unit length."""

FITS_UP_TO = 2.0
"""Losses are released up to so many times that of a model that knows nothing (`disue.tasks.Task.loss_unit`)."""

ORDERS = (1.0 + np.geomspace(1e-6, 1e4, 500)).tolist()
"""Of the Rényi divergences that epsilon is the best of."""


def epsilon_of(releases: int, noise: float, delta: float) -> float:
    """Return the epsilon of so many releases, which may each depend on those before, by Rényi accounting.

    Mironov, "Rényi Differential Privacy", CSF 2017, with the conversion of Canonne, Kamath & Steinke, NeurIPS 2020,
    proposition 12: the number that Opacus gives, which clients need not have. Nothing is gained by sampling clients.

    Parameters
    ----------
    releases : int
    noise : float
        Deviation of the noise, in bounds of the vectors.
    delta : float
    """
    if releases == 0:
        return 0.0
    orders = np.array(ORDERS)
    with np.errstate(over="ignore", divide="ignore"):  # of hardly any noise it is infinite
        divergences = releases * orders * (np.float64(SENSITIVITY) / noise) ** 2 / 2.0
        epsilons = divergences - (math.log(delta) + np.log(orders)) / (orders - 1.0) + np.log1p(-1.0 / orders)
    return max(0.0, float(epsilons.min()))


def planned_releases(config: ClientConfig, prototypes: bool, description: bool) -> int:
    """Return how many releases of a client a run asks for at most, if nothing is repeated and nobody comes back.

    The client is sampled in every round.

    Parameters
    ----------
    config : ClientConfig
    prototypes : bool
        Whether the run asks for prototypes with every update.
    description : bool
        Whether it asks for a description of the client's data.
    """
    evaluations = math.ceil(config.num_server_rounds / config.evaluate_every)
    return config.num_server_rounds * (1 + prototypes) + evaluations + description

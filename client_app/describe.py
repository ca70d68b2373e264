"""What the server gets to know of a client's data: class prototypes, and descriptions that need no training."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from disue.comparing import SUBSPACE_DIMENSIONS
from disue.covariance import axes_of_strata, covariance_within, covariances_of_strata, num_axes, triangle
from disue.data import Examples
from disue.device import place
from disue.early import early_features
from disue.metrics import predict_logits
from disue.models import Classifier, flatten, num_parameters, travelling
from disue.registry import Registry
from disue.signature import CovarianceOf, Signature
from disue.tasks import Task

Describe = Callable[[Classifier, Examples, torch.device, Task, bool], Tensor]
DESCRIPTIONS: Registry[Describe] = Registry("signature")
"""Name -> function from the run's initial model, the training data, the device, the task, and whether label counts
may be told, to a matrix of floats."""
BATCH = 512
"""Examples of which a gradient is taken at once."""


def make_signature(
    model: Classifier,
    examples: Examples,
    device: torch.device,
    task: Task,
    share_label_counts: bool = True,
    covariance: CovarianceOf = "",
) -> Signature:
    """Return the counts and the prototypes of the strata (classes, or one for all) of the client's training data.

    Parameters
    ----------
    model : Classifier
        Its body gives the features.
    examples : Examples
        The client's training data.
    device : torch.device
    task : Task
        Says what the strata are.
    share_label_counts : bool (default: True)
        If not, one stands for every stratum that occurs.
    covariance : str (default: "")
        Whether to say, too, how the features vary within all strata together, or within each; see `CovarianceOf`.
    """
    counts, strata = task.count_strata(examples.y), task.strata(examples.y)
    features = predict_logits(model.body, examples.x, device)
    told = counts if share_label_counts else (counts > 0).to(counts)
    means = means_of_strata(features, strata, counts)
    found: Tensor | None = None
    if covariance == "each":
        found = covariances_of_strata(features, strata, means)
    elif covariance == "axes" and (count := num_axes(len(means), means.shape[1], num_parameters(travelling(model)))):
        found = axes_of_strata(features, strata, means, count)
    elif covariance:
        found = covariance_within(features, strata, means)
    return Signature(told, means, found)


def early_signature(
    initial: Classifier, examples: Examples, device: torch.device, task: Task, most: int, covariance: bool
) -> Signature:
    """Return the counts, and the mean early features, of the strata of the client's training data (`disue.early`).

    Parameters
    ----------
    initial : Classifier
        The run's initial model.
    examples : Examples
        The client's training data.
    device : torch.device
    task : Task
        Says what the strata are.
    most : int
        How many features there are at most.
    covariance : bool
        Whether to say, too, how the features vary within all strata together, as a triangle of the whole.
    """
    counts, strata = task.count_strata(examples.y), task.strata(examples.y)
    features = early_features(initial, examples.x, device, most)
    means = means_of_strata(features, strata, counts)
    off = (features - means[strata]).double()
    return Signature(counts, means, triangle((off.T @ off / max(len(off), 1)).float()) if covariance else None)


def means_of_strata(features: Tensor, strata: Tensor, counts: Tensor) -> Tensor:
    """Return the mean features of the examples of each stratum, (strata, features); zeros where there are none."""
    sums = torch.zeros(len(counts), features.shape[1]).index_add_(0, strata, features)
    return sums / counts.clamp(min=1.0).unsqueeze(1)


@DESCRIPTIONS.register("initial-prototypes")
def initial_prototypes(
    initial: Classifier, examples: Examples, device: torch.device, task: Task, share_label_counts: bool = True
) -> Tensor:
    """Return prototypes under the initial model, less their mean, and the strata's shares: (strata, features + 1).

    Both parts are of equal length, and the whole of unit length. Each stratum is scaled by the square root of its
    share, or all alike if that is not to be told. The feature space is that of all clients and all rounds: it does not
    forget how clients differ while the universal expert learns to see no difference. Features have a large part in
    common, whatever the client; without the client's own mean the rest is what clients differ in. Of a client with
    one stratum nothing would be left, so there it stays.
    """
    signature = make_signature(initial, examples, device, task, share_label_counts)
    shares = signature.label_counts / signature.label_counts.sum()
    roots, points = shares.sqrt().unsqueeze(1), signature.prototypes
    if int((shares > 0).sum()) > 1:
        points = points - shares @ points
    scaled = F.normalize((points * roots).reshape(-1), dim=0).view_as(points)
    return torch.cat([scaled, roots], dim=1) / math.sqrt(2.0)


@DESCRIPTIONS.register("anchor-gradient")
def anchor_gradient(
    initial: Classifier, examples: Examples, device: torch.device, task: Task, share_label_counts: bool = True
) -> Tensor:
    """Return the gradient of the loss of all examples at the initial model, (1, parameters), of unit length.

    Two clients whose gradients at one anchor point the same way have data of one kind (StoCFL, Zeng et al. 2023). All
    strata that occur count alike if their shares are not to be told.
    """
    place(initial, device)
    initial.train()
    shares = (
        torch.ones(len(examples))
        if share_label_counts
        else 1.0 / task.count_strata(examples.y)[task.strata(examples.y)]
    )
    parameters = [parameter for parameter in initial.parameters() if parameter.requires_grad]
    total = torch.zeros(sum(parameter.numel() for parameter in parameters))
    for x, y, weights in zip(*(own.split(BATCH) for own in (examples.x, examples.y, shares)), strict=True):
        losses = task.loss.of_examples(initial(x.to(device)), y.to(device))
        gradient = torch.autograd.grad((losses * weights.to(device)).sum(), parameters)
        total += flatten(gradient).cpu()
    return F.normalize(total, dim=0).unsqueeze(0)


@DESCRIPTIONS.register("subspace")
def subspace(
    _initial: Classifier, examples: Examples, _device: torch.device, _task: Task, _share: bool = True
) -> Tensor:
    """Return an orthonormal basis of the data's leading directions, (inputs, 3); it needs no labels.

    They are the left singular vectors of the matrix whose columns are the client's inputs (PACFL, Vahidian et al.
    2023, section 3; they take 3 to 5). With fewer examples than directions the missing ones are zero.
    """
    columns = examples.x.flatten(start_dim=1).T.double()
    basis, _, _ = torch.linalg.svd(columns, full_matrices=False)
    leading = basis[:, :SUBSPACE_DIMENSIONS].float()
    return F.pad(leading, (0, SUBSPACE_DIMENSIONS - leading.shape[1]))

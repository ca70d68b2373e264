"""The client's signature: what the server needs to know of its data, and nothing more."""

import torch
from torch import Tensor

from client_app.training import label_counts
from disue.data import Examples
from disue.metrics import predict_logits
from disue.models import Classifier
from disue.signature import Signature


def make_signature(universal: Classifier, initial: Classifier, examples: Examples, device: torch.device) -> Signature:
    """Return label counts and class prototypes of the client's training data.

    Parameters
    ----------
    universal : Classifier
        The universal expert that opened the round.
    initial : Classifier
        The model that the run started from.
    examples : Examples
        The client's training data.
    device : torch.device
    """
    counts = label_counts(examples.y, universal.head.out_features)

    def prototypes(model: Classifier) -> Tensor:
        features = predict_logits(model.body, examples.x, device)
        sums = torch.zeros(len(counts), features.shape[1]).index_add_(0, examples.y, features)
        return sums / counts.clamp(min=1.0).unsqueeze(1)

    return Signature(counts, prototypes(universal), prototypes(initial))

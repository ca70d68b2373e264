"""The gradient that a client followed, from the two ends of its way: of use to the client, and to the server."""

from disue.models import State, trained


def mean_gradient(start: State, end: State, steps: int, learning_rate: float, momentum: float = 0.0) -> State:
    """Return the mean of the gradients that took SGD from one model to another, of its parameters.

    Without momentum it is (start - end) / (steps * learning_rate). With momentum a gradient goes on to act in later
    steps, so that those of early steps count for more; of gradients that are all the same the mean is that gradient.

    Parameters
    ----------
    start, end : State
    steps : int
        At least 1.
    learning_rate, momentum : float
        As `torch.optim.SGD` has them.
    """
    acting = steps / (1.0 - momentum) - momentum * (1.0 - momentum**steps) / (1.0 - momentum) ** 2
    return {name: (tensor - end[name]) / (acting * learning_rate) for name, tensor in trained(start).items()}

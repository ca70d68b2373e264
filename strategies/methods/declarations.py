"""What a method, or an assigner, declares: what it asks of clients, what it takes of a run, and what goes with it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Needs:
    """What a method asks of clients.

    Attributes
    ----------
    prototypes : bool
        Label counts and class prototypes with every update.
    covariance : bool
        Beside the prototypes, how features vary around them. No client tells it with ``privacy=dp``.
    description : str
        The name of what clients say of their data before they train; empty: nothing.
    fits : bool
        With every evaluation, how well the universal model and the client's expert fit its training data.
    personal : bool
        With every evaluation, and not only the last, the accuracy after fine-tuning.
    memory : str
        The kind of memory that clients have from round to round (`client_app.memory`); empty: none.
    digest : bool
        With every update, a digest of the data that the client trained on; it comes with a description anyway.
    """

    prototypes: bool = False
    covariance: bool = False
    description: str = ""
    fits: bool = False
    personal: bool = False
    memory: str = ""
    digest: bool = False


@dataclass(frozen=True)
class Uses:
    """What a method, or an assigner, takes of a run.

    Attributes
    ----------
    proxies : tuple of str
        The kinds of proxy sets that it can learn from: holdout, dataset, path, generator; none: it needs none.
    assigner : bool
        Clients are clustered as the run's ``clusterer`` has it.
    planted_groups : bool
        It is told the planted groups.
    given_number : bool
        It must be told the number of clusters.
    choices : bool
        Clients choose among the clusters' models by their losses.
    cluster_priors : bool
        Clients put their own label prior for that of their cluster's expert.
    """

    proxies: tuple[str, ...] = ()
    assigner: bool = False
    planted_groups: bool = False
    given_number: bool = False
    choices: bool = False
    cluster_priors: bool = False


@dataclass(frozen=True)
class Supports:
    """What goes with a method, or an assigner.

    Attributes
    ----------
    sums : bool
        It needs no more than the sum of each cluster's updates, so that ``privacy=secure`` can be used.
    mixed_models : bool
        Clients may have several architectures.
    uncovered : str
        What clients send that the noise of ``privacy=dp`` does not cover; empty: nothing.
    no_universal : str
        Why its universal model is of no use to anyone, as a sentence for the model card; empty: it is.
    """

    sums: bool = False
    mixed_models: bool = False
    uncovered: str = ""
    no_universal: str = ""

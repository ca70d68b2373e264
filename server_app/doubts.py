"""What a run's settings ask for and its data cannot give: it is said, and the run goes on with what there is."""

from disue.config.data import DataSettings
from disue.data import Federation
from disue.data.client_data import MIN_TRAIN_EXAMPLES
from disue.data.scenarios import ONE_GROUP, USE_ALPHA
from server_app.config import RunConfig
from strategies.methods.chosen import Chosen

SMALL = 5 * MIN_TRAIN_EXAMPLES
"""Training examples per client, on average, that are few however they are divided."""


def doubts(config: RunConfig, data: object) -> list[str]:
    """Return a line for each setting that does not do what it says with these data.

    Parameters
    ----------
    config : RunConfig
    data : Federation or anything else
        Of data that are the clients' own nothing is known.
    """
    if not isinstance(data, Federation):
        return []
    return [line for line in (_groups(config, data), _starved(config, data)) if line]


def _groups(config: RunConfig, data: Federation) -> str:
    asked, clients = config.num_groups, data.num_clients
    if data.has_groups and config.scenario not in ONE_GROUP:
        if asked <= clients:
            return ""
        there = "there is 1 client" if clients == 1 else f"there are {clients} clients"
        return f"num-groups: got {asked}; {there}, so {asked - clients} of the groups are empty"
    counted = Chosen(config).naming(lambda uses: uses.given_number)
    if asked == DataSettings().num_groups or (counted and not config.num_clusters):
        return ""
    return f"num-groups: got {asked}; scenario '{config.scenario}' plants no groups, so it changes nothing"


def _starved(config: RunConfig, data: Federation) -> str:
    few = sum(len(part) <= MIN_TRAIN_EXAMPLES for part in data.train_parts)
    if not few or 0 < config.train_examples <= MIN_TRAIN_EXAMPLES:
        return ""
    scenario, alpha = f"scenario '{config.scenario}'", f"alpha {config.alpha:g}"
    skew = [scenario, alpha] if config.scenario in USE_ALPHA else [scenario]
    if sum(map(len, data.train_parts)) <= SMALL * data.num_clients:
        capped = 0 < config.train_examples <= SMALL
        small = f"train-examples {config.train_examples}" if capped else f"dataset '{config.dataset}'"
        cause = f"{small}, with {' and '.join(skew)},"
    else:
        cause = " with ".join(skew)
    return f"{cause} leaves {few} of {data.num_clients} clients no more than {MIN_TRAIN_EXAMPLES} training examples"

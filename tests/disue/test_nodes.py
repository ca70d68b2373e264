import math

import pytest

from disue.errors import ConfigError
from disue.nodes import NodeConfig


def test_a_node_has_data_of_its_own_or_a_part_of_a_dataset() -> None:
    own = NodeConfig.from_flower({"name": "hospital-a", "data-path": "/data"})
    assert (own.client, own.data_path, own.partition_id, own.model) == ("hospital-a", "/data", None, None)
    part = NodeConfig.from_flower({"partition-id": 3, "num-partitions": 7, "model": "mlp"})
    assert (part.client, part.data_path, part.model) == ("client-3", None, "mlp")
    named = NodeConfig.from_flower({"partition-id": 3, "num-partitions": 7, "name": "ward"})
    assert named.client == "ward"


@pytest.mark.parametrize(
    ("node_config", "words"),
    [
        ({}, "neither data-path nor partition-id and num-partitions; use e.g. --node-config"),
        ({"name": "a"}, "neither data-path nor partition-id"),
        ({"partition-id": 0}, "neither data-path nor partition-id"),
        ({"name": "a", "datapath": "/d"}, "no such key 'datapath' (did you mean 'data-path'?); the keys are name,"),
        ({"data-path": "/d"}, "data-path needs a name beside it"),
        ({"name": "", "data-path": "/d"}, "name: got ''"),
        ({"name": "x" * 101, "data-path": "/d"}, "should have at most 100 characters"),
        ({"name": "a\nb", "data-path": "/d"}, "name: got 'a\\nb'; use printable text"),
        ({"name": 7, "data-path": "/d"}, "name: got 7; input should be a valid string"),
        ({"name": "a", "data-path": 7}, "data-path: got 7; input should be a valid string"),
        ({"name": "a", "data-path": "/d", "partition-id": 0}, "data-path and partition-id exclude each other"),
        ({"name": "a", "data-path": "/d", "num-partitions": 2}, "data-path and num-partitions exclude each other"),
        ({"partition-id": "0", "num-partitions": 2}, "partition-id: got '0'; input should be a valid integer"),
        ({"partition-id": -1, "num-partitions": 2}, "partition-id: got -1"),
        ({"partition-id": 2, "num-partitions": 2}, "partition-id: got 2; num-partitions is 2, use 0 to 1"),
        ({"name": "a", "data-path": "/d", "max-epsilon": 0.0}, "max-epsilon: got 0.0; input should be greater than 0"),
        ({"name": "a", "data-path": "/d", "max-epsilon": math.nan}, "max-epsilon: got nan; input should be"),
        ({"name": "a", "data-path": "/d", "max-epsilon": math.inf}, "max-epsilon: got inf; input should be a finite"),
        (
            {"name": "a", "data-path": "/d", "max-epsilon": True},
            "max-epsilon: got True; input should be a valid number",
        ),
        ({"name": "a", "data-path": "/d", "max-epsilon": "3"}, "max-epsilon: got '3'; input should be a valid number"),
        ({"name": "a", "data-path": "/d", "max-delta": 1.0}, "max-delta: got 1.0; input should be less than 1"),
        ({"name": "a", "data-path": "/d", "min-dp-noise": -1}, "min-dp-noise: got -1; input should be greater than 0"),
        ({"name": "a", "data-path": "/d", "min-noise": 1.0}, "no such key 'min-noise' (did you mean 'min-dp-noise'?)"),
        (
            {"name": "a", "data-path": "/d", "max-epsilon": 3, "privacy": "secure"},
            "max-epsilon: got 3, which needs privacy 'dp', beside what needs 'secure'",
        ),
        (
            {"name": "a", "data-path": "/d", "max-epsilon": 3, "max-sketch-size": 8},
            "max-sketch-size: got 8, which needs privacy 'secure', beside what needs 'dp'",
        ),
        (
            {"name": "a", "data-path": "/d", "max-sketch-size": 0},
            "max-sketch-size: got 0; input should be greater than",
        ),
    ],
)
def test_a_node_config_that_cannot_be_meant_is_one_clear_line(node_config: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        NodeConfig.from_flower(node_config)
    name = str(node_config.get("name", ""))
    known = name in ("a", "x" * 101)
    assert str(caught.value).startswith(f"node config of '{name}': " if known else "node config: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)

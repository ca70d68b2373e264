"""What the server measures and writes asks the task: here of a tabular regression."""

import json
import tomllib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import mean_absolute_error, r2_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests_support import run_context

from disue.data import Examples
from disue.metrics import predict_logits
from disue.models import build_model, get_state
from disue.tasks import Regression
from server_app.callbacks.base import RunContext, RunEnd
from server_app.callbacks.recorder import Recorder
from server_app.callbacks.report_data import ReportData
from server_app.callbacks.results import write_votes
from server_app.callbacks.tensorboard import Events
from server_app.rows import Row
from server_app.run_directory import write_config
from server_app.scoring import Scores, on_test_set
from strategies.distillation.teachers import VoteSummary
from strategies.methods.base import MethodState
from strategies.rounds.registry import Client
from strategies.rounds.stats import RoundStats

CPU = torch.device("cpu")
TASK = Regression(("a", "b"), (3,), (0.0,) * 3, (1.0,) * 3, (5.0, 0.0), (2.0, 1.0))
BUILD = partial(build_model, shape=TASK.shape, num_outputs=TASK.num_outputs)
TEST = Examples(*(torch.randn(40, n, generator=torch.Generator().manual_seed(n)) for n in (3, 2)))


class Table:
    """The server has a test set and nothing else."""

    task = TASK
    has_groups = False

    def global_test(self) -> Examples:
        return TEST

    def proxy(self) -> torch.Tensor:
        raise NotImplementedError


def scores() -> Scores:
    universal, average = (get_state(BUILD("mlp", seed=seed)) for seed in (1, 2))
    return on_test_set(
        TASK, {"mlp": universal, "lenet": universal}, average, lambda name: BUILD("mlp"), "mlp", TEST, CPU
    )


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    made = run_context(tmp_path, Table(), [Client("a", 1, 9, -1, 1, "mlp")])
    made.strategy.stats = RoundStats(1, clusters={"a": 0})
    return made


def recorded(context: RunContext) -> Row:
    row = context.rows.add(context.strategy.stats, scores(), context.strategy.registry.known)
    Recorder().after_round(context, row)
    return row


def test_a_row_has_the_metrics_of_the_task(context: RunContext, tmp_path: Path) -> None:
    row = recorded(context)
    truth = TEST.y.double().numpy()
    for prefix, suffix, seed in (("universal", "", 1), ("universal", "_lenet", 1), ("average", "", 2)):
        said = predict_logits(BUILD("mlp", seed=seed), TEST.x, CPU).double().numpy()
        assert row[f"{prefix}_r2{suffix}"] == pytest.approx(r2_score(truth, said))
        assert row[f"{prefix}_mae{suffix}"] == pytest.approx(mean_absolute_error(truth, said))
    assert row["universal_loss"] == pytest.approx(
        float(np.mean((predict_logits(BUILD("mlp", seed=1), TEST.x, CPU).double().numpy() - truth) ** 2))
    )
    assert not {"universal_accuracy", "average_accuracy"} & row.keys()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == row


def test_the_config_file_says_what_the_task_is(context: RunContext, tmp_path: Path) -> None:
    write_config(tmp_path, context.config, TASK, context.strategy.registry.known)
    assert tomllib.loads((tmp_path / "config.toml").read_text())["task"] == {
        "targets": ["a", "b"],
        "target-mean": [5.0, 0.0],
        "target-std": [2.0, 1.0],
        "input-shape": "3",
        "mean": [0.0] * 3,
        "std": [1.0] * 3,
    }


def test_who_taught_is_one_line_for_each_expert(tmp_path: Path) -> None:
    votes = VoteSummary(["0", "1"], torch.tensor([[0.25, 0.75], [0.75, 0.25]]), torch.zeros(2, dtype=torch.int64))
    write_votes(tmp_path, votes, TASK.num_strata)
    assert (tmp_path / "teaching.csv").read_text().splitlines()[1:] == ["0,0,0.5000,2", "1,0,0.5000,2"]


def test_there_is_no_confusion_of_quantities(context: RunContext, tmp_path: Path) -> None:
    state = get_state(BUILD("mlp"))
    ReportData().end(context, RunEnd({}, MethodState(initial=state, universals={"mlp": state})))
    assert not load_file(tmp_path / "portrait.safetensors")


def test_metrics_are_grouped_and_rows_of_a_table_are_no_pictures(context: RunContext, tmp_path: Path) -> None:
    context.strategy.method.proxy = TEST.x
    events = Events()
    events.begin(context)
    events.after_round(context, recorded(context))
    events.end(context, RunEnd({}))
    written = EventAccumulator(str(tmp_path / "tensorboard"))
    written.Reload()
    assert {"r2/universal_r2", "mae/average_mae", "loss/universal_loss"} <= set(written.Tags()["scalars"])
    assert not written.Tags()["images"]

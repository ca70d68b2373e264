"""Make the folder of the format that this code writes: ``python -m tests.stored_runs``."""

import json
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from disue import load_run
from disue.data.inputs import read_inputs
from disue.files import RUN_FORMAT
from disue_cli.commands.assign import place, read_new
from disue_cli.commands.predict import AUTO, classify
from disue_cli.engines.inline import run_inline
from server_app.config import RunConfig

HERE = Path(__file__).parent
CLIENTS = 4
SETTINGS = {
    "model": "mlp",
    "num-server-rounds": 2,
    "num-groups": 2,
    "num-clusters": 2,
    "train-examples": 100,
    "test-examples": 20,
    "global-test-size": 50,
    "proxy-size": 100,
    "local-epochs": 4,
    "distill-steps": 60,
    "report": False,
}
"""Small, and with every file but the report, which is made from the others."""
IMAGES = 8


def main(name: str) -> None:
    """Write ``run/``, ``images.npz`` and ``expected.json`` of a format."""
    folder = HERE / name
    folder.mkdir()
    digits = load_digits()
    images = folder / "images.npz"
    pixels = np.round(digits.images[-IMAGES:] / 16 * 255).astype(np.uint8)
    np.savez_compressed(images, x=pixels, y=digits.target[-IMAGES:].astype(np.int64))
    run_inline(RunConfig.from_flower(SETTINGS | {"output-dir": str(folder / "run")}), CLIENTS)
    settings = folder / "run" / "config.toml"
    settings.write_text(settings.read_text().replace(json.dumps(str(folder / "run")), '"run"'))
    run = load_run(folder / "run")
    inputs = read_inputs([images], run.task.shape)
    predictions = {}
    for expert in (*run.universals, *run.experts, AUTO):
        found = classify(run, inputs, expert, top=1)
        predictions[expert] = [[one.expert, label, round(p, 6)] for one in found for label, p in one.classes]
    expected = {"predictions": predictions, "cluster": place(run, read_new(run, images)).cluster}
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main(f"format-{RUN_FORMAT}")

"""`disue export`: read by onnxruntime and by torch.export, and compared with the run's own models."""

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from disue import load_run
from disue.models import MODELS, build_model
from disue.runs.reading import Model, PixelModel
from disue.tasks import ImageClassification
from disue_cli.commands import export as exporting

Said = Callable[..., tuple[str, str]]


def pixels_for(shape: tuple[int, ...], batch: int) -> np.ndarray:
    return np.random.default_rng(batch).random((batch, *shape), dtype=np.float32)


def run_onnx(path: Path, pixels: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [place.name for place in session.get_inputs()] == ["pixels"]
    logits: np.ndarray = session.run(["logits"], {"pixels": pixels})[0]
    return logits


def test_onnx_takes_pixels_in_any_batch_and_knows_the_classes(finished: Path, tmp_path: Path, said: Said) -> None:
    out, _ = said("export", finished, "--format", "onnx", "--expert", 1, "--output", tmp_path / "deeper" / "one.onnx")
    path = tmp_path / "deeper" / "one.onnx"
    assert out == f"1: {path}\n"
    assert [file.name for file in path.parent.iterdir()] == ["one.onnx"]
    run = load_run(finished)
    for batch in (1, 2, 7):
        pixels = pixels_for(run.task.shape, batch)
        expected = run.expert(1).logits(pixels).numpy()
        assert np.abs(run_onnx(path, pixels) - expected).max() < 1e-4
    model = onnx.load(path)
    onnx.checker.check_model(model)
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(told["classes"]) == list(run.task.class_names)
    assert (told["model"], told["architecture"]) == ("1", "mlp")


def test_a_torch_program_needs_no_disue(finished: Path, tmp_path: Path, said: Said) -> None:
    said("export", finished, "--format", "torch", "--expert", "all", "--output", tmp_path / "models")
    names = {"universal": "universal", "expert-0": "0", "expert-1": "1"}
    assert {file.name for file in (tmp_path / "models").iterdir()} == {f"{name}.pt2" for name in names}
    run = load_run(finished)
    for file, name in names.items():
        extra = {"disue.json": ""}
        program = torch.export.load(tmp_path / "models" / f"{file}.pt2", extra_files=extra).module()
        pixels = torch.from_numpy(pixels_for(run.task.shape, 5))
        assert torch.allclose(program(pixels), run.model(name).logits(pixels), atol=1e-5)
        assert json.loads(extra["disue.json"])["classes"] == list(run.task.class_names)
    assert b"disue.models" not in b"".join(
        archive.read(entry)
        for archive in [zipfile.ZipFile(tmp_path / "models" / "universal.pt2")]
        for entry in archive.namelist()
        if entry.endswith(".pkl")
    )


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(name, marks=pytest.mark.e2e if name == "resnet18" else ()) for name in MODELS if name != "mlp"],
)
def test_every_other_architecture_can_be_exported(architecture: str, tmp_path: Path) -> None:
    task = ImageClassification(("a", "b", "c"), (3, 8, 12), (0.4, 0.5, 0.6), (0.2, 0.3, 0.1))
    module = PixelModel(build_model(architecture, task.shape, 3), task)
    exporting.write_model(Model("universal", architecture, task, module), tmp_path / "m.onnx", "onnx", {})
    pixels = pixels_for(task.shape, 4)
    normalised = task.normalise(torch.from_numpy(pixels))
    expected = build_model(architecture, task.shape, 3).eval()(normalised).detach().numpy()
    assert np.abs(run_onnx(tmp_path / "m.onnx", pixels) - expected).max() < 1e-4


def test_a_file_that_differs_from_pytorch_is_not_put_in_place(
    finished: Path, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    (tmp_path / "u.pt2").write_text("what was there before")
    said = refused("export", str(finished), "--format", "torch", "--output", str(tmp_path / "u.pt2"), status=1)
    assert "the exported 'universal' differs from PyTorch by" in said
    assert [file.name for file in tmp_path.iterdir()] == ["u.pt2"]
    assert (tmp_path / "u.pt2").read_text() == "what was there before"


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["{run}", "--format", "torch", "--expert", "9"], "expert: '9' does not exist; choose from universal, 0, 1"),
        (["{here}", "--format", "torch"], "there is no run here (config.toml is missing)"),
        (["{run}", "--format", "torch", "--output", "{here}"], "is a folder; name a file, or use --expert all"),
        (
            ["{run}", "--format", "torch", "--expert", "all", "--output", "{here}/file"],
            "file' is a file; with --expert all name a folder",
        ),
        (["{run}", "--format", "torch", "--output", "{here}/file/u.pt2"], "u.pt2' cannot be written ("),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    finished: Path, tmp_path: Path, refused: Callable[..., str], words: list[str], what: str
) -> None:
    (tmp_path / "file").write_text("x")
    assert what in refused("export", *(word.format(run=finished, here=tmp_path) for word in words))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert not (finished / "export").exists()


def test_a_missing_extra_is_named(finished: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    said = refused("export", str(finished), "--format", "onnx")
    assert "--format: onnx needs the package onnxruntime; install the extra: pip install 'disue[onnx]'" in said


def test_a_folder_that_leads_out_of_the_run_is_not_written_to(
    spoilt: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (spoilt / "export").symlink_to(tmp_path / "elsewhere")
    assert "export' leads out of the run directory" in refused("export", str(spoilt), "--format", "torch")
    assert list((tmp_path / "elsewhere").iterdir()) == []

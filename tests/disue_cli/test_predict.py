"""`disue predict`."""

import csv
import io
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from disue import load_run
from disue.data import build_federation
from disue.models import build_model


@pytest.fixture(scope="module")
def pictures(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the run's own test images as PNG files, an .npz file of the same, and a negative."""
    federation = build_federation(load_run(finished).config, 6)
    chosen = federation.dataset.test[torch.from_numpy(federation.test_indices[:12])]
    bytes_ = (chosen.x[:, 0].float() / 16 * 255).round().to(torch.uint8).numpy()
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "png").mkdir()
    for i, image in enumerate(bytes_):
        Image.fromarray(image).save(folder / "png" / f"{i:02}.png")
    np.savez(folder / "x.npz", x=bytes_)
    Image.fromarray(255 - bytes_[0]).save(folder / "negative.png")
    return folder


def by_hand(run: Path, name: str, pixels: np.ndarray) -> torch.Tensor:
    """Return class probabilities, (images, classes), from the files of the run and nothing else of the command."""
    from safetensors.torch import load_file

    task = load_run(run).task
    network = build_model("mlp", task.shape, task.num_classes)
    network.load_state_dict(load_file(run / f"{name}.safetensors"))
    x = (torch.from_numpy(pixels).float()[:, None] / 255 - task.mean[0]) / task.std[0]
    return torch.softmax(network(x), dim=1).detach()


def test_json_has_the_probabilities_of_the_universal_expert(
    finished: Path, pictures: Path, said: Callable[..., tuple[str, str]]
) -> None:
    out, err = said("predict", finished, pictures / "png", "--top", 3, "--format", "json")
    rows = json.loads(out)
    assert not err
    assert [row["image"] for row in rows] == [str(pictures / "png" / f"{i:02}.png") for i in range(12)]
    expected = by_hand(finished, "universal", np.load(pictures / "x.npz")["x"])
    for row, shares in zip(rows, expected, strict=True):
        best = shares.argsort(descending=True)[:3].tolist()
        assert row["expert"] == "universal"
        assert [found["class"] for found in row["classes"]] == [str(label) for label in best]
        assert [found["probability"] for found in row["classes"]] == pytest.approx(shares[best].tolist(), abs=1e-5)


def test_auto_uses_for_each_image_the_expert_that_it_names(
    finished: Path, pictures: Path, said: Callable[..., tuple[str, str]]
) -> None:
    out, _ = said("predict", finished, pictures / "x.npz", "--expert", "auto", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["image"] for row in rows] == [f"{pictures / 'x.npz'}[{i}]" for i in range(12)]
    x = np.load(pictures / "x.npz")["x"]
    assert [row["expert"] for row in rows] == load_run(finished).choose(x)
    assert {row["expert"] for row in rows} == {"0", "1"}
    experts = {name: by_hand(finished, f"experts/expert-{name}", x) for name in ("0", "1")}
    for i, row in enumerate(rows):
        shares = experts[row["expert"]][i]
        assert (row["rank"], row["class"]) == ("1", str(int(shares.argmax())))
        assert float(row["probability"]) == pytest.approx(float(shares.max()), abs=1e-5)


def test_a_table_is_for_people_and_a_negative_is_noticed(
    finished: Path, pictures: Path, said: Callable[..., tuple[str, str]]
) -> None:
    out, err = said("predict", finished, pictures / "negative.png", "--expert", 1)
    assert "probability" in out
    assert err.startswith("disue: these images have a mean brightness of 0.")
    assert "use --invert" in err
    inverted, err = said("predict", finished, pictures / "negative.png", "--invert", "--format", "json")
    assert not err
    straight, _ = said("predict", finished, pictures / "png" / "00.png", "--format", "json")
    assert json.loads(inverted)[0]["classes"] == json.loads(straight)[0]["classes"]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["{run}", "{here}/nothing.png"], "nothing.png' does not exist; name images"),
        (["{run}", "{here}/text.png"], "text.png' cannot be read (not an image)"),
        (["{run}", "{here}/half.png"], "half.png' cannot be read ("),
        (["{run}", "{here}/odd.npz"], "odd.npz': x is (2, 3); expected (n, height, width)"),
        (["{run}", "{here}/good.png", "--expert", "5"], "expert: '5' does not exist; choose from universal, 0, 1"),
        (["{here}", "{here}/good.png"], "there is no run here (config.toml is missing)"),
        (["{here}/none", "{here}/good.png"], "none' is no directory; name the directory of a run"),
    ],
)
def test_bad_input_is_one_line(
    finished: Path, tmp_path: Path, refused: Callable[..., str], words: list[str], what: str
) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50), dtype=np.uint8)).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    np.savez(tmp_path / "odd.npz", x=np.zeros((2, 3), dtype=np.uint8))
    assert what in refused("predict", *(word.format(run=finished, here=tmp_path) for word in words))


def test_a_damaged_model_or_gate_is_one_line(spoilt: Path, pictures: Path, refused: Callable[..., str]) -> None:
    path = spoilt / "experts" / "expert-0.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    said = refused("predict", str(spoilt), str(pictures / "png"), "--expert", "0")
    assert f"'{path}' is damaged (" in said
    (spoilt / "gate.safetensors").unlink()
    said = refused("predict", str(spoilt), str(pictures / "png"), "--expert", "auto")
    assert "expert: 'auto' needs a gate and this run (method 'disue') has none; choose from universal, 0, 1" in said


def test_the_readmes_drawing_is_an_image_that_can_be_predicted(
    finished: Path, tmp_path: Path, said: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    block = readme.split("<!-- use -->\n```bash\n")[1].split("```")[0]
    draw, predict = (shlex.split(line) for line in block.splitlines()[-2:])
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, *draw[1:]], check=True)
    assert predict[:3] == ["disue", "predict", "runs/first"]
    out, err = said("predict", finished, *predict[3:], "--format", "csv")
    assert out.splitlines()[1].startswith("three.png,universal,1,")
    assert not err


def test_a_name_that_would_steer_the_terminal_is_shown_as_it_is(
    finished: Path, pictures: Path, tmp_path: Path, said: Callable[..., tuple[str, str]]
) -> None:
    odd = tmp_path / "a\x1b[2Jb\n.png"
    odd.write_bytes((pictures / "png" / "00.png").read_bytes())
    out, _ = said("predict", finished, odd)
    assert "\x1b" not in out


def test_what_is_left_out_of_a_folder_is_said_beside_the_predictions(
    finished: Path, pictures: Path, tmp_path: Path, said: Callable[..., tuple[str, str]], messages: list[str]
) -> None:
    (tmp_path / "linked").symlink_to(pictures / "png")
    (tmp_path / "photo.heic").write_bytes(b"")
    out, _ = said("predict", finished, tmp_path, "--format", "json")
    assert len(json.loads(out)) == 12
    assert messages == [f"'{tmp_path}': left out: files with the ending .heic (1: 'photo.heic')"]

"""Proxy sets from other datasets and from image files that the tests make."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from disue.data import Dataset, Examples, Federation, build_federation, load_dataset
from disue.data.image_files import fit_to
from disue.errors import ConfigError, DataError
from disue.tasks import ImageClassification, Regression
from server_app.config import RunConfig
from server_app.run import preflight
from strategies.distillation.proxy import find_images, load_proxy, look_at_proxy, read_proxy
from strategies.distillation.server import FixedProxy
from strategies.methods import parts
from strategies.methods.parts import Parts

LABELS = torch.zeros(2, dtype=torch.int64)


def federation(**settings: object) -> tuple[RunConfig, Federation]:
    config = RunConfig.from_flower({key.replace("_", "-"): value for key, value in settings.items()})
    return config, build_federation(config, 4)


def colour_task() -> Dataset:
    x = torch.zeros(2, 3, 6, 4, dtype=torch.uint8)
    return Dataset("c", ("a", "b"), Examples(x, LABELS), Examples(x, LABELS), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def write_images(directory: Path, count: int, mode: str = "L", size: tuple[int, int] = (8, 8)) -> np.ndarray:
    rng = np.random.default_rng(0)
    shape = (count, size[1], size[0], 3) if mode == "RGB" else (count, size[1], size[0])
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    for i, image in enumerate(pixels):
        path = directory / f"ward-{i % 2}" / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return pixels


def test_the_holdout_is_the_federations() -> None:
    config, made = federation()
    assert torch.equal(load_proxy(config, made), made.proxy())


def test_views_are_new_in_each_round_the_same_in_each_run_and_of_rows_none() -> None:
    x = torch.randn(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    task = ImageClassification(("a", "b"), (1, 28, 28), (0.0,), (1.0,))
    proxy, again = (FixedProxy(x, task, views=3, shift=0.075, seed=5) for _ in range(2))
    first, second = proxy.seen(1), proxy.seen(2)
    assert (first.seen.shape, len(first.views)) == ((24, 1, 28, 28), 3)
    assert first.x is x, "what is computed of it is kept"
    assert torch.equal(first.seen[:6], x)
    assert torch.equal(proxy.inputs(None, 1), x), "feature spaces are compared on the samples themselves"
    for i in range(1, 4):
        view = first.seen[6 * i : 6 * i + 6]
        assert [j for j in range(4) if torch.equal(first.seen[6 * j : 6 * j + 6], view)] == [i]
        assert not torch.equal(view, second.seen[6 * i : 6 * i + 6])
    assert torch.equal(again.seen(1).seen, first.seen)
    rows = torch.randn(6, 4)
    other = FixedProxy(
        rows, Regression(("a",), (4,), (0.0,) * 4, (1.0,) * 4, (0.0,), (1.0,)), views=3, shift=0.075
    ).seen(1)
    assert (len(other.seen), other.views) == (6, ())


@pytest.mark.parametrize(
    ("size", "samples", "views"), [(100, 4000, 39), (200, 450, 1), (200, 299, 0), (200, 100, 0), (200, 0, 0)]
)
def test_there_are_as_many_views_as_make_the_wanted_number_of_samples(size: int, samples: int, views: int) -> None:
    config, made = federation(proxy_size=size, proxy_samples=samples)
    proxy = Parts(config, made, torch.device("cpu")).fixed_proxy()
    assert len(proxy.seen(1).views) == views


def test_views_of_large_images_take_a_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config, made = federation(proxy_size=100)
    size = 100 * 8 * 8 * 4
    monkeypatch.setattr(parts, "MOST_BYTES", 3 * size + 1)
    seen = Parts(config, made, torch.device("cpu")).fixed_proxy().seen(1)
    assert (seen.x.nbytes, len(seen.views)) == (size, 3)


def test_another_dataset_is_resized_and_keeps_its_own_normalisation() -> None:
    digits = load_dataset("digits")
    config, made = federation(dataset="fashion-mnist", proxy="dataset:digits")
    x = load_proxy(config, made)
    assert x.shape == (len(digits.train), 1, 28, 28)
    assert abs(float(x.mean())) < 0.1
    assert float(x.std()) == pytest.approx(1.0, abs=0.2)
    small, _ = federation(dataset="fashion-mnist", proxy="dataset:digits", proxy_size=50)
    chosen = load_proxy(small, made)
    assert chosen.shape[0] == 50
    assert all(any(torch.equal(one, other) for other in x) for one in chosen)
    assert torch.equal(load_proxy(small, made), chosen)


def test_sizes_change_as_pillow_changes_them() -> None:
    pixels = np.random.default_rng(1).random((13, 9), dtype=np.float32)
    expected = np.asarray(Image.fromarray(pixels).resize((4, 6), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(fit_to(torch.from_numpy(pixels)[None, None], (1, 6, 4))[0, 0], expected, atol=1e-5)


def test_grey_becomes_colour_and_colour_becomes_grey() -> None:
    grey = torch.rand(2, 1, 3, 3)
    colour = fit_to(grey, (3, 3, 3))
    assert all(torch.equal(colour[:, c], grey[:, 0]) for c in range(3))
    torch.testing.assert_close(fit_to(colour, (1, 3, 3)), grey)
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    assert float(fit_to(red, (1, 1, 1))) == pytest.approx(0.299)


def test_images_below_a_directory_are_read_in_the_order_of_their_paths(tmp_path: Path) -> None:
    pixels = write_images(tmp_path, 12)
    (tmp_path / "notes.txt").write_text("not an image")
    paths = find_images(tmp_path)
    assert [path.name for path in paths] == [f"{i:03}.png" for i in (*range(0, 12, 2), *range(1, 12, 2))]
    digits = load_dataset("digits")
    x, _ = read_proxy(paths, digits.task)
    expected = (pixels[0] / 255.0 - digits.mean[0]) / digits.std[0]
    np.testing.assert_allclose(x[0, 0], expected, atol=1e-5)


def test_colour_images_of_any_size_for_a_colour_task(tmp_path: Path) -> None:
    pixels = write_images(tmp_path, 10, "RGB", size=(4, 6))
    task = colour_task()
    x, _ = read_proxy(find_images(tmp_path), task.task)
    expected = (pixels[2] / 255.0 - np.array(task.mean)) / np.array(task.std)
    np.testing.assert_allclose(x[1].permute(1, 2, 0), expected, atol=1e-5)


def test_images_are_read_and_told_of_once_until_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path, 12)
    (tmp_path / "notes.txt").write_text("not an image")
    Image.new("L", (8, 8)).save(tmp_path / "blank.png")
    config, made = federation(proxy=f"path:{tmp_path}")
    opened, plain = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **options: opened.append(args) or plain(*args, **options))
    before, _ = look_at_proxy(config, made)
    assert not caplog.records
    assert torch.equal(load_proxy(config, made), before)
    assert len(opened) == 13
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"'{tmp_path}': left out: files with the ending .txt (1: 'notes.txt')",
        f"pictures in which all pixels are alike: 1 ('{tmp_path / 'blank.png'}')",
    ]
    Image.new("L", (8, 8), 9).save(tmp_path / "blank.png", compress_level=0)
    assert not torch.equal(load_proxy(config, made), before)


def test_a_simulation_tells_of_its_proxy_once(run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:  # type: ignore[no-untyped-def]
    write_images(tmp_path / "own", 12)
    (tmp_path / "own" / "notes.txt").write_text("not an image")
    config, _ = federation(proxy=f"path:{tmp_path / 'own'}")
    preflight(config, 4)
    assert not [record for record in caplog.records if "notes.txt" in record.getMessage()]
    made = run(proxy=config.proxy, clients=4)
    assert len([record for record in caplog.records if "notes.txt" in record.getMessage()]) == 1
    assert (made.directory / "warnings.csv").read_text().count("notes.txt") == 1


def test_a_run_is_taught_on_the_operators_images(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    write_images(tmp_path / "own", 40, "RGB", size=(20, 10))
    own, held_out = run(proxy=f"path:{tmp_path / 'own'}"), run()
    assert own.summary["ari"] == held_out.summary["ari"]
    assert own.rows[0]["average_accuracy"] == held_out.rows[0]["average_accuracy"]
    assert own.rows[0]["divergence_average"] != held_out.rows[0]["divergence_average"]


def test_a_run_without_any_data_on_the_server(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(Federation, "proxy", None)
    settings = {"clients": 6, "proxy": "generator", "proxy_size": 60, "generator_steps": 10, "seed": 17}
    result, again = run(**settings), run(**settings)
    for row in result.rows:
        assert row["generator_fidelity"] > 0.0 > row["generator_adversarial"]
        assert 0.0 < row["generator_diversity"] < 1.0
    assert result.rows[1]["generator_fidelity"] < result.rows[0]["generator_fidelity"]
    assert result.summary["universal_loss"] == again.summary["universal_loss"]
    sheets = sorted(path.name for path in (result.directory / "generated").iterdir())
    assert sheets == ["round-0001.png", "round-0002.png"]
    with Image.open(result.directory / "generated" / "round-0002.png") as sheet:
        assert sheet.size == (8 * 50, 10 * 50)  # eight samples of each class, 48 pixels and a margin


def test_client_models_cannot_train_a_generator(run) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match="proxy: got 'generator'; method 'feddf' needs holdout"):
        run(method="feddf", proxy="generator")


@pytest.mark.parametrize("value", ["generated", "dataset:", "path:", "dataset", "holdout:x", ""])
def test_an_unknown_proxy_says_what_there_is(value: str) -> None:
    with pytest.raises(ConfigError, match=f"proxy: got '{value}'; use holdout, dataset:NAME, path:DIR or generator"):
        RunConfig.from_flower({"proxy": value})


def test_bad_places_are_named(tmp_path: Path) -> None:
    config, made = federation(proxy="dataset:mnits")
    with pytest.raises(
        ConfigError, match=r"proxy: got 'dataset:mnits'; dataset: 'mnits' does not exist \(did you mean 'mnist'\?\)"
    ):
        load_proxy(config, made)
    with pytest.raises(DataError, match=r"proxy: '.*nowhere' is not a directory"):
        find_images(tmp_path / "nowhere")
    write_images(tmp_path, 9)
    with pytest.raises(DataError, match=r"has 9 images; at least 10 are needed"):
        find_images(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    write_images(tmp_path, 10)
    victim = tmp_path / "ward-1" / "003.png"
    victim.write_bytes(victim.read_bytes()[:60] if content is None else content)
    with pytest.raises(DataError, match=r"proxy: '.*003.png' cannot be read"):
        read_proxy(find_images(tmp_path), load_dataset("digits").task)


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, 10, size=(20, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(DataError, match=r"000.png' cannot be read \(Image size \(400 pixels\) exceeds limit"):
        read_proxy(find_images(tmp_path), load_dataset("digits").task)

"""The report: what it says, that it is whole and safe, and what it says of directories that hold no run."""

import csv
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from synthetic import CHARTS, HOSTILE, write_run

from disue.assignments import parse_assignments
from disue.errors import DataError
from disue.files import part_of
from server_app.card import card
from server_app.config import RunConfig
from server_app.report import read_run, write_comparison, write_report
from server_app.report.build import comparison_page, report_page
from server_app.report.charts import charts
from server_app.report.command import command_of
from server_app.report.drawing import safe
from server_app.report.flow import flow
from server_app.report.intervals import in_words, of_examples, over_clients
from server_app.report.words import cards, sentences


class Page(HTMLParser):
    """What a browser makes of a page: its elements, the figures, the cells of its tables, and outside addresses."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.figures: dict[str, object] = {}
        self.cells: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self._figure = ""
        self._cell = False
        self.text = path.read_text()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href")]
        self._figure = (values.get("id") or "") if values.get("type") == "application/json" else ""
        self._cell = tag == "td" or (self._cell and tag == "span")
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._figure = ""
        self._cell = self._cell and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._figure:
            self.figures[self._figure.removeprefix("figure-")] = json.loads(data)
        elif self._cell:
            self.cells[-1] += data


def test_a_run_makes_its_report_with_every_chart(run) -> None:  # type: ignore[no-untyped-def]
    result = run(clients=7, num_clusters=2, report=True)
    page = Page(result.directory / "report.html")
    assert page.figures.keys() == CHARTS
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    with (result.directory / "clients.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert row["client"] in page.cells
            assert f"{100 * float(row['expert_accuracy']):.1f} %" in page.cells
    assert f"{100 * result.summary['universal_accuracy']:.1f} %" in page.text
    line = next(trace for trace in page.figures["accuracy"]["data"] if trace["name"] == "universal expert")
    assert line["y"] == pytest.approx([row["universal_accuracy"] for row in result.rows], abs=1e-5)
    before = page.text
    assert write_report(result.directory).read_text() == before


@pytest.mark.parametrize("method", ["fedavg", "local", "ifca"])
def test_methods_without_signatures_have_a_report_that_says_so(run, method: str) -> None:  # type: ignore[no-untyped-def]
    result = run(clients=4, method=method, report=True)
    page = Page(result.directory / "report.html")
    assert "This method compares no clients" in page.text
    assert page.figures.keys() >= {"accuracy", "composition", "clients", "confusion", "seconds", "traffic"}
    assert not page.figures.keys() & {"map", "similarity", "teaching"}


def test_names_from_outside_are_letters_and_no_markup(tmp_path: Path) -> None:
    names = HOSTILE * 2
    directory = write_run(
        tmp_path / "<b>run",
        clients=len(HOSTILE),
        name=names.__getitem__,
        class_names=[f"<i>{i}</i>" for i in range(10)],
    )
    page = Page(write_report(directory))
    expected = Page(write_report(write_run(tmp_path / "plain", clients=len(HOSTILE))))
    assert page.tags == expected.tags
    assert set(HOSTILE) <= set(page.cells)
    for figure in page.figures.values():
        assert not any(name in text for name in HOSTILE[:3] for text in texts_of(figure))
        assert not any("<i>" in text for text in texts_of(figure))
    assert safe(HOSTILE[0]) in "\n".join(texts_of(page.figures["map"]))


def texts_of(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for inner in value.values() for text in texts_of(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in texts_of(inner)]
    return [value] if isinstance(value, str) else []


def test_a_thousand_clients_fit_in_less_than_15_megabytes(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "large", clients=1000, rounds=100, groups=10)
    path = write_report(directory)
    assert path.stat().st_size < 15e6
    page = Page(path)
    assert page.figures.keys() == CHARTS
    assert len(page.figures["similarity"]["data"][0]["z"]) == 256
    assert {f"client-{i}" for i in range(1000)} <= set(page.cells)


def test_the_flow_counts_who_goes_where(tmp_path: Path) -> None:
    record = read_run(write_run(tmp_path / "run", clients=30))
    figure, columns = flow(record, lambda cluster: "#000000")
    assert columns == 4  # groups, and rounds 1, 3 and 10
    links = figure["data"][0]["link"]
    assert sum(links["value"]) == 3 * 30
    # Clients 0, 10 and 20, of groups 0, 1 and 2, begin in the next group's cluster and come back in round 3.
    assert sorted(links["value"]) == sorted([9, 9, 9, 1, 1, 1, 9, 9, 9, 1, 1, 1, 10, 10, 10])


def wilson(share: float, examples: int) -> tuple[str, str]:
    """Return Wilson's 95 % interval in per cent, from its closed form."""
    z, p = 1.959964, round(share * examples) / examples
    middle = (p + z * z / (2 * examples)) / (1 + z * z / examples)
    half = z / (1 + z * z / examples) * (p * (1 - p) / examples + z * z / (4 * examples**2)) ** 0.5
    return f"{100 * (middle - half):.1f}", f"{100 * (middle + half):.1f}"


@pytest.mark.parametrize(("share", "examples"), [(0.9, 100), (0.0, 7), (1.0, 30), (0.5, 2), (0.943, 899)])
def test_the_interval_of_a_test_set_is_wilsons(share: float, examples: int) -> None:
    assert in_words(of_examples(share, examples)) == "{} to {} %".format(*wilson(share, examples)).replace(
        "-0.0", "0.0"
    )


def test_an_interval_is_given_only_where_it_is_known() -> None:
    for share, examples in ((None, 100), (0.5, 0), (0.5, -3), (1.5, 10), (0.5, 10**12)):
        assert of_examples(share, examples) is None
    assert over_clients([0.5]) is None
    assert over_clients([0.5, None]) is None
    half = 4.302653 * 0.1 / 3**0.5  # Student's quantile with two degrees of freedom
    assert over_clients([0.4, 0.5, 0.6]) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)


def test_no_page_calls_the_average_of_a_run_fedavg(finished: Path) -> None:
    """FedAvg's clients train from their average in every round; those of another method do not."""
    record = read_run(finished)
    for text in (report_page(record), comparison_page([record, record]), card(record)):
        assert "untaught average of" in text
        assert not re.search(r"average[^.]{0,40}\(FedAvg\)|FedAvg.average", text)


def write_baseline(directory: Path, name: str, status: str = "completed", clients: int = 12, **values: Any) -> None:
    """Write the run of another method in a run directory."""
    place = directory / "baselines" / name
    write_run(place, clients=clients, method=name, **values)
    summary = json.loads((place / "summary.json").read_text())
    summary |= {"status": status, "method": name, "universal_accuracy": 0.5, "expert_accuracy": 0.25}
    (place / "summary.json").write_text(json.dumps(summary))


def test_a_baseline_is_compared_with_by_its_name(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", clients=12)
    for name, status in (("fedavg", "completed"), ("local", "stopped")):
        write_baseline(directory, name, status=status)
    record = read_run(directory)
    words, notes = " ".join(sentences(record)), [shown.note for shown in cards(record)]
    assert "In a run of fedavg with the same clients and seed the universal model is right on 50.0 % of" in words
    assert "the model that a client uses is right on 25.0 % of its own test data, here " in words
    assert "19.0 points above fedavg" in notes[0]
    assert "points above fedavg" in notes[1]
    assert not re.search(r"(run of|above|below) local", "".join(notes) + words)
    assert "--baseline" not in words
    (directory / "baselines" / "fedavg" / "summary.json").write_text("{")
    with pytest.raises(DataError, match="baselines/fedavg/summary.json' is damaged"):
        read_run(directory)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"rounds": 9}, "it has 9 rounds, the run 10"),
        ({"seed": 7}, "its seed is 7, the run's 0"),
        ({"alpha": 0.5}, "its alpha is 0.5, the run's 0.1"),
        ({"clients": 11}, "its clients are others"),
    ],
)
def test_a_run_is_compared_only_with_one_that_is_like_it(tmp_path: Path, values: dict[str, Any], expected: str) -> None:
    directory = write_run(tmp_path / "run", clients=12)
    write_baseline(directory, "fedavg", **values)
    record = read_run(directory)
    assert (record.baselines, record.unlike) == ({}, {"fedavg": expected})
    words = " ".join(sentences(record))
    assert f"The run of fedavg is not compared with: {expected}." in words
    assert "with the same clients and seed" not in words
    assert "fedavg" not in "".join(shown.note for shown in cards(record))


def test_the_words_say_what_the_numbers_are(tmp_path: Path) -> None:
    record = read_run(write_run(tmp_path / "run", clients=12))
    words, examples = " ".join(sentences(record)), int(record.arrays["confusion"].sum())
    assert "ran 10 rounds with 12 clients on digits (scenario label-groups, seed 0)" in words
    (low, high), (low_of_average, high_of_average) = (wilson(share, examples) for share in (0.69, 0.67))
    assert f"right on 69.0 % of the {examples:,} test examples (95 % interval {low} to {high} %)" in words
    assert f"client models in the same round on 67.0 % ({low_of_average} to {high_of_average} %), so the univ" in words
    assert "so the universal expert is right on 2.0 more in a hundred. The intervals overlap: " in words
    assert "is not FedAvg" in words
    assert "beats the universal expert for 12 of 12 clients" in words
    assert "in 3 clusters, exactly the planted groups. Clients last changed their cluster in round 3." in words
    assert "All rounds took 40.0 s, most of it local training (20.0 s)." in words
    assert "Training sent 20.0 MB to the clients and 10.0 MB back; no update was lost." in words


def test_the_command_gives_the_same_configuration(tmp_path: Path) -> None:
    values = {"seed": 7, "method": "fedavg", "alpha": 0.25, "prior-correction": False, "data-dir": "my 'data'; 3"}
    record = read_run(write_run(tmp_path / "run", clients=5, **values))
    words = shlex.split(command_of(record))
    assert words[:4] == ["disue", "simulate", "--clients", "5"]
    repeated = RunConfig.from_flower(parse_assignments(words[5::2]))
    assert repeated.to_flower() == record.config


def test_a_deployed_run_is_repeated_with_flowers_command(tmp_path: Path) -> None:
    values = {"seed": 7, "data-dir": 'a "b"', "learning-rate": 1e-5}
    record = read_run(write_run(tmp_path / "run", clients=2, name="ward {}".format, **values))
    words = shlex.split(command_of(record))
    assert words[:5] == ["flwr", "run", ".", "--stream", "--run-config"]
    assert words[5] == 'seed=7 data-dir="a \\u0022b\\u0022" learning-rate=1e-05'


def test_an_unfinished_run_shows_what_there_is(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", rounds=3)
    for name in ("summary.json", "clients.csv", "portrait.safetensors", "portrait.json", "teaching.csv"):
        (directory / name).unlink()
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"round": 4, "univ')  # being written
    page = Page(write_report(directory))
    assert "not finished" in page.text
    assert page.figures.keys() == {"accuracy", "membership", "seconds", "traffic"}
    assert len(page.figures["accuracy"]["data"][0]["x"]) == 6

    (directory / "metrics.jsonl").write_text("")
    (directory / "membership.csv").unlink()
    assert not Page(write_report(directory)).figures


def test_runs_are_compared_on_one_page(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a" / "<run>", rounds=5)
    second = write_run(tmp_path / "b" / "<run>", rounds=10, seed=3)
    page = Page(write_comparison([first, second], tmp_path / "both.html"))
    assert page.figures.keys() == {"universal", "expert", "spread"}
    assert [len(trace["x"]) for trace in page.figures["universal"]["data"]] == [5, 10]
    assert "The best universal expert: b/&lt;run&gt;, 69.0 %; 5.0 points before the second." in page.text
    assert "The runs differ in seed" in page.text
    assert "run" not in page.tags


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("metrics.jsonl", b'{"round": 1}\n{"round"\n', "metrics.jsonl' is damaged ("),
        ("metrics.jsonl", b"[1]\n", "metrics.jsonl' is damaged (line 1 is no round"),
        ("metrics.jsonl", b"\xff\xfe\n", "metrics.jsonl' is damaged ("),
        ("config.toml", b"run = 3", "config.toml' is damaged (there is no [run] in it)"),
        ("summary.json", b"{", "summary.json' is damaged ("),
        ("clients.csv", b"client,group\na,0\n", "clients.csv' is damaged (no column 'model')"),
        ("membership.csv", b"round,client,cluster\nx,a,0\n", "membership.csv' is damaged ("),
        ("portrait.safetensors", b"\x08", "portrait.safetensors' is damaged ("),
        ("portrait.json", b"{}", "portrait.safetensors' is damaged ('"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    directory = write_run(tmp_path / "run")
    (directory / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        write_report(directory)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (directory / "report.html").exists()


def test_where_there_is_no_run_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no directory; name the directory of a run"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"there is no run here \(config.toml is missing\)"):
        read_run(tmp_path)
    directory = write_run(tmp_path / "run")
    with pytest.raises(DataError, match=r"cannot be written"):
        write_report(directory, tmp_path / "nowhere" / "report.html")


def test_every_chart_is_explained(tmp_path: Path) -> None:
    for chart in charts(read_run(write_run(tmp_path / "run"))):
        assert chart.title
        assert chart.words.endswith((".", ").", "right."))


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", clients=3, rounds=2)
    (tmp_path / "precious").write_text("mine")
    for path in (part_of(directory / "report.html"), directory / "report.html"):
        path.symlink_to(tmp_path / "precious")
    write_report(directory)
    assert (tmp_path / "precious").read_text() == "mine"
    assert (directory / "report.html").read_text().startswith("<!DOCTYPE html>")


ACCURACIES = "universal_accuracy,expert_accuracy,personal_accuracy"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", '{"round": 1, "universal_accuracy": "high"}\n'),
        ("metrics.jsonl", '{"round": 1, "universal_accuracy": NaN}\n'),
        ("metrics.jsonl", '{"round": true}\n'),
        ("metrics.jsonl", "[" * 100_000 + "\n"),
        ("summary.json", '{"status": 3}'),
        ("teaching.csv", "expert,class,weight,samples\n0,999999999,0.5,3\n"),
        ("clients.csv", "client," + "x" * 200_000 + "\n"),
        (
            "clients.csv",
            f"client,group,model,cluster,examples,{ACCURACIES}\na\n",
        ),
        ("portrait.json", '{"map": [[1]]}'),
        ("portrait.json", '{"map-share": null}'),
        ("config.toml", "[run]\nmethod = 3\n"),
        ("config.toml", "[run]\n[federation]\nclients = 3\n"),
    ],
)
def test_a_file_of_the_wrong_types_is_named(tmp_path: Path, name: str, content: str) -> None:
    directory = write_run(tmp_path / "run", clients=3, rounds=2)
    (directory / name).write_text(content)
    with pytest.raises(DataError, match=f"{name.split('.')[0]}.*is damaged"):
        write_report(directory)

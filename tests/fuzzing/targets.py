"""What reads from outside, each with inputs of the kind that it reads."""

import contextlib
import hashlib
import io
import itertools
import os
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from flwr.app import Message
from flwr.clientapp import ClientApp
from hypothesis import strategies as st
from rich.console import Console
from rich.live import Live

from client_app.app import app as client_app
from disue.assignments import parse_assignments
from disue.data.datasets import load_dataset
from disue.data.idx import read_idx
from disue.data.image_files import read_image
from disue.data.inputs import read_inputs
from disue.data.own import open_own, read_own
from disue.nodes import NodeConfig
from disue.runs.reading import load_run
from disue.tasks import ImageClassification
from disue_cli.commands import certs as certs_command
from disue_cli.compare.cells import Cell
from disue_cli.engines.inline import FIRST_NODE_ID, InlineGrid, run_inline, simulated_nodes
from disue_cli.main import main
from disue_cli.views import LiveView, PlainView
from disue_cli.watching import look
from fuzzing import spoiling
from fuzzing.messages import asked_for, spoilt_content, wire_targets
from fuzzing.spoiling import NAMES, SCALARS, SIZES, VALUES, WRITERS, any_image, idx, npz
from fuzzing.target import LONGEST_LINE, Target
from server_app.callbacks.checkpoint import Checkpoints
from server_app.card import card
from server_app.config import RunConfig
from server_app.report.build import comparison_page, report_page
from server_app.report.reading import read_run
from server_app.resume import look_back
from server_app.run import execute

SMALL: dict[str, Any] = {"model": "mlp", "local-epochs": 1, "distill-steps": 2, "report": False}
TINY: dict[str, Any] = SMALL | {"num-server-rounds": 2, "train-examples": 30, "test-examples": 10, "proxy-size": 20}
CLIENTS = 6


def make_targets(place: Path) -> list[Target]:
    """Return all targets; they keep their files in a directory of their own."""
    finished = make_run(place / "finished")
    interrupted = interrupt(shutil.copytree(finished, place / "interrupted"), place)
    return [
        *file_targets(place / "files"),
        *setting_targets(),
        *run_targets(finished, interrupted, place / "runs"),
        *wire_targets(),
        *server_targets(place / "served"),
        *command_targets(finished, place / "commands"),
    ]


# --- files -----------------------------------------------------------------------------------------


def file_targets(place: Path) -> list[Target]:
    """Return the readers of data."""
    place.mkdir(parents=True)
    shape = (1, 6, 6)

    def written(name: str, content: bytes) -> Path:
        (place / name).write_bytes(content)
        return place / name

    def image(value: tuple[bytes, int]) -> None:
        content, channels = value
        assert read_image(written("a.png", content), channels, "a.png").shape[1] == channels

    def arrays(value: tuple[bytes, bool]) -> None:
        content, own = value
        path = written("a.npz", content)
        x = read_own(path, shape).x if own else read_inputs([path], shape).pixels
        assert x.shape[1:] == shape
        assert bool(((x >= 0) & (x <= 1)).all())

    def one_idx(content: bytes) -> None:
        read_idx(written("a.gz" if content[:2] == b"\x1f\x8b" else "a", content))

    digits = {
        "train-images-idx3-ubyte": b"\0\0\x08\x03" + struct.pack(">3I", 8, 4, 4) + bytes(range(128)),
        "train-labels-idx1-ubyte": b"\0\0\x08\x01" + struct.pack(">I", 8) + bytes(range(8)),
        "t10k-images-idx3-ubyte": b"\0\0\x08\x03" + struct.pack(">3I", 4, 4, 4) + bytes(range(64)),
        "t10k-labels-idx1-ubyte": b"\0\0\x08\x01" + struct.pack(">I", 4) + bytes(range(4)),
    }
    dataset = place / "mnist"
    dataset.mkdir()

    def whole_dataset(value: tuple[str, bytes]) -> None:
        name, content = value
        for other, usual in digits.items():
            (dataset / f"{other}.gz").unlink(missing_ok=True)
            (dataset / other).write_bytes(usual)
        packed = content[:2] == b"\x1f\x8b"
        (dataset / (f"{name}.gz" if packed else name)).write_bytes(content)
        load_dataset.cache_clear()
        load_dataset("mnist", str(dataset))

    pixel = spoiling.images()["a.pgm"]
    names = st.one_of(NAMES, st.sampled_from(["a.png", "b.png", "cat", ".hidden", "x.npz"])).map(
        lambda name: name.replace("/", "_").replace("\0", "_")[:80] or "_"
    )
    entries = st.lists(st.tuples(names, names, st.sampled_from(["file", "loop", "away", "pipe", "folder"])), max_size=5)
    numbers = itertools.count()

    def folder(value: tuple[list[tuple[str, str, str]], int]) -> None:
        entries, seed = value
        root = place / f"own-{next(numbers)}"
        try:
            for label in ("cat", "dog"):
                (root / label).mkdir(parents=True)
                for i in range(3):
                    (root / label / f"{i}.pgm").write_bytes(pixel)
            for label, name, kind in entries:
                _put(root, label, f"{name}.png", kind, pixel)
            split = open_own(str(root), shape, 0.3, seed % 2**63, "a")
            split.for_task(ImageClassification(split.data.class_names, shape, split.summary().mean, (1.0,)))
        finally:
            shutil.rmtree(root)

    made = {name: st.tuples(st.just(name), idx(content)) for name, content in digits.items()}
    return [
        Target("images", st.tuples(any_image(), st.sampled_from([1, 3])), image, 6),
        Target("npz", st.tuples(npz(), st.booleans()), arrays, 12),
        Target("idx", idx(digits["train-images-idx3-ubyte"]), one_idx, 6),
        Target("mnist", st.one_of(*made.values()), whole_dataset, 4),
        Target("own-folders", st.tuples(entries, st.integers(0, 99)), folder, 1),
    ]


def _put(root: Path, label: str, name: str, kind: str, content: bytes) -> None:
    with contextlib.suppress(OSError, UnicodeEncodeError, ValueError):
        (root / label).mkdir(exist_ok=True)
        path = root / label / name
        if kind == "file":
            path.write_bytes(content)
        elif kind == "loop":
            path.symlink_to(path.name)
        elif kind == "away":
            path.symlink_to("/dev/zero")
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.mkdir()


# --- settings --------------------------------------------------------------------------------------


def setting_targets() -> list[Target]:
    """Return the readers of configs and options."""

    def dict_of(value: object) -> bool:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)

    keys = st.sampled_from([*RunConfig().to_flower(), "nothing", ""])
    settings = st.one_of(VALUES, st.sampled_from([0, 1, 5, 0.5, True, "1x9x9", "a,b", "path:.", "universal"]))
    nodes = st.one_of(
        spoiling.spoilt_structure({"name": "a", "data-path": "/data", "model": "mlp"}),
        spoiling.spoilt_structure({"partition-id": 1, "num-partitions": 4}),
    ).filter(dict_of)
    words = st.lists(st.text(max_size=10) | st.builds("{}={}".format, keys, SCALARS), max_size=3)
    hosts = st.one_of(
        NAMES,
        st.from_regex(r"[a-zſK0-9:.%_-]{1,20}", fullmatch=True),
        st.ip_addresses().map(str),
        st.builds("fe80::1%{}".format, NAMES),
        st.sampled_from(["superlink", "localhost", "10.0.0.5", "a.b-c.org", "xn--a", "ä.org"]),
    )

    def config(values: dict[str, Any]) -> None:
        again = RunConfig.from_flower(values)
        assert RunConfig.from_flower(again.to_flower()) == again
        _ = again.shape, again.class_names, again.models_of_clients, again.client_model(2, 7)

    def certificates(value: tuple[list[str], str]) -> None:
        hosts, directory = value
        names = [certs_command.general_name(host) for host in hosts]
        _certificate(names)
        _check_script(certs_command.commands(Path("/keys", directory.replace("\0", "")), hosts, 2))

    return [
        Target("run-config", spoiling.spoilt_structure(RunConfig().to_flower(), settings).filter(dict_of), config, 8),
        Target("node-config", nodes, NodeConfig.from_flower, 8),
        Target("assignments", words, lambda words: RunConfig.from_flower(parse_assignments(words)), 8),
        Target("hosts", st.tuples(st.lists(hosts, min_size=1, max_size=3), NAMES), certificates, 4),
    ]


def _certificate(names: list[Any]) -> None:
    from cryptography import x509

    x509.SubjectAlternativeName(names).public_bytes()


def _check_script(script: str) -> None:
    """The part that goes into Flower's config.toml must say what it should."""
    import tomllib

    text = script.partition("<<'END'\n")[2].partition("\nEND\n")[0]
    assert tomllib.loads(text)["superlink"]["disue"].keys() == {"address", "root-certificates"}


# --- run directories -------------------------------------------------------------------------------


def make_run(directory: Path) -> Path:
    """Make a run with every kind of file, in two clusters."""
    run_inline(RunConfig.from_flower(TINY | {"num-clusters": 2, "output-dir": str(directory)}), CLIENTS)
    return directory


def interrupt(directory: Path, place: Path) -> Path:
    """Make a run that was finished one that was killed before its last round: its config had one more."""
    config = (directory / "config.toml").read_text().replace("num-server-rounds = 2", "num-server-rounds = 3")
    (directory / "config.toml").write_text(config.replace(str(place / "finished"), str(directory)))
    for name in ("summary.json", "MODEL_CARD.md"):
        (directory / name).unlink()
    progress = '{"round": 2, "rounds": 3, "phase": "local", "done": 1, "of": 3, "since": 1.0, "finished": '
    (directory / "progress.json").write_text(progress + '{"local": {"done": 3, "of": 3, "seconds": 1.5}}}')
    return directory


def run_targets(finished: Path, interrupted: Path, place: Path) -> list[Target]:
    """Return the readers of run directories."""
    place.mkdir(parents=True)
    x = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8)

    def load(directory: Path) -> None:
        run = load_run(directory)
        _ = run.universal(x), [run.expert(name)(x) for name in run.experts]
        if run.gate is not None and run.gate.experts:
            _ = [run.model(name) for name in run.choose(x)]

    def report(directory: Path) -> None:
        record = read_run(directory)
        with mock.patch("server_app.report.build.get_plotlyjs", return_value=""):
            report_page(record)
            comparison_page([record, read_run(finished)])

    def watch(directory: Path) -> None:
        config = read_run(directory).config
        sight = look(directory, int(config.get("num-server-rounds", 0)))
        console = Console(file=io.StringIO(), highlight=False)
        PlainView(console).show(sight)
        console.print(LiveView(Live(console=console, auto_refresh=False), "a run").panel(sight))
        assert "\x1b" not in console.file.getvalue()

    def resume(directory: Path) -> None:
        values = {"resume-from": str(directory), "num-server-rounds": 3}
        from server_app.resume import resumed_config

        config = resumed_config(values)
        look_back(config)

    def cell(directory: Path) -> None:
        (directory / "cell.json").write_text('{"wall_seconds": 1.0, "cpu_seconds": 1.0, "source": "a"}')
        config = RunConfig.from_flower(TINY | {"num-clusters": 2})
        one = Cell("digits", "label-groups", "disue", config, CLIENTS, directory.parent)
        with mock.patch.object(Cell, "directory", directory):
            if one.summary() is not None:
                one.rows()

    models = ["gate.safetensors", "universal.safetensors", "experts/expert-0.safetensors"]
    tables = ["config.toml", "metrics.jsonl", "summary.json", "clients.csv", "membership.csv", "teaching.csv"]
    portrait = ["portrait.safetensors", "portrait.json"]
    under_way = ["config.toml", "metrics.jsonl", "membership.csv"]
    used: dict[str, tuple[Path, Callable[[Path], object], list[str], float]] = {
        "run-load": (finished, load, ["config.toml", "summary.json", "clients.csv", *models], 4),
        "run-report": (finished, report, [*tables, *portrait], 4),
        "run-card": (finished, lambda directory: card(read_run(directory)), [*tables, *portrait], 3),
        "run-watch": (interrupted, watch, [*under_way, "progress.json"], 4),
        "run-resume": (interrupted, resume, under_way, 3),
        "run-compare": (finished, cell, ["config.toml", "metrics.jsonl", "summary.json"], 3),
    }
    made = []
    for name, (source, read, files, weight) in used.items():
        copy = Path(shutil.copytree(source, place / name))
        spoilt = [st.tuples(st.just(file), WRITERS[Path(file).suffix]((source / file).read_bytes())) for file in files]
        made.append(Target(name, st.one_of(*spoilt), _on_a_copy(copy, source, read), weight))
    checkpoint = next(interrupted.glob("checkpoint/round-000002-*")).read_bytes()
    again = Path(shutil.copytree(interrupted, place / "checkpoint"))
    return [
        *made,
        Target("checkpoint", spoiling.spoilt_safetensors(checkpoint), _checkpoint(place / "checkpoints"), 4),
        Target("resume", spoiling.spoilt_safetensors(checkpoint), _resumed(again, interrupted), 0.1),
    ]


def _on_a_copy(copy: Path, source: Path, read: Callable[[Path], object]) -> Callable[[tuple[str, bytes]], None]:
    def feed(value: tuple[str, bytes]) -> None:
        name, content = value
        (copy / name).write_bytes(content)
        try:
            read(copy)
        finally:
            shutil.copyfile(source / name, copy / name)

    return feed


def _checkpoint(place: Path) -> Callable[[bytes], None]:
    """Return what reads a checkpoint that was changed by somebody who knows its hash."""
    (place / "checkpoint").mkdir(parents=True)

    def feed(content: bytes) -> None:
        digest = hashlib.sha256(content).hexdigest()
        path = place / "checkpoint" / f"round-000002-{digest}.safetensors"
        path.write_bytes(content)
        try:
            Checkpoints(place).load()
        finally:
            path.unlink()

    return feed


def _resumed(copy: Path, source: Path) -> Callable[[bytes], None]:
    """Return what goes on with a run whose checkpoint was changed by somebody who knows its hash."""

    def feed(content: bytes) -> None:
        shutil.rmtree(copy)
        shutil.copytree(source, copy)
        for path in copy.glob("checkpoint/round-*"):
            path.unlink()
        digest = hashlib.sha256(content).hexdigest()
        (copy / "checkpoint" / f"round-000002-{digest}.safetensors").write_bytes(content)
        from server_app.resume import resumed_config

        run_inline(resumed_config({"resume-from": str(copy)}), CLIENTS)

    return feed


# --- a server with a client that may say anything ---------------------------------------------------


class Hostile(InlineGrid):
    """A grid whose first node's replies are replaced, the nth by what is made of it."""

    def __init__(self, app: ClientApp, config: RunConfig, clients: int, spoil: Callable[[Message], Message]) -> None:
        super().__init__(app, config.to_flower(), simulated_nodes(clients))
        self.spoil = spoil

    def answer(self, message: Message) -> Message:
        reply = super().answer(message)
        if message.metadata.dst_node_id != FIRST_NODE_ID or reply.has_error():
            return reply
        return self.spoil(reply)


def server_targets(place: Path) -> list[Target]:
    """Return the server, with a client that may say anything, in every method."""
    place.mkdir(parents=True)
    numbers = itertools.count()
    base = SMALL | {"num-server-rounds": 2, "train-examples": 20, "test-examples": 5, "proxy-size": 10}
    base |= {"min-clients": 1, "join-timeout": 0.1, "min-success-fraction": 0.3, "num-groups": 2}
    choices = st.sampled_from(
        [
            *(
                {"method": method}
                for method in (
                    *("fedavg", "cfl", "flhc", "pacfl", "ifca", "fedgroup", "fesem", "oracle"),
                    *("fedavgm", "fedadam", "scaffold", "ccvr", "ditto", "fedrep", "stocfl"),
                )
            ),
            *({"method": "disue", "clusterer": name} for name in ("agglomerative", "kmeans", "ifca", "oracle")),
            *({"method": "disue", "signature": name} for name in ("subspace", "prototypes", "update", "last-layer")),
            *({"method": "disue", "aggregator": name} for name in ("median", "krum", "geometric-median")),
            {"method": "disue", "clip-norm": 2.0},
            {"method": "disue", "share-label-counts": False, "teacher": "class-weighted"},
        ]
    )

    def serve(value: tuple[dict[str, Any], Any]) -> None:
        settings, data = value
        directory = place / str(next(numbers))
        config = RunConfig.from_flower(base | settings | {"output-dir": str(directory)})

        def spoil(reply: Message) -> Message:
            kept = dict(reply.metadata.__dict__)
            content = data.draw(spoilt_content(reply.content)) if data.draw(st.integers(0, 2)) == 0 else reply.content
            spoilt = Message(content, reply_to=asked_for())
            spoilt.metadata.__dict__.update(kept)
            return spoilt

        try:
            execute(config, Hostile(client_app, config, 3, spoil))
            report_page(read_run(directory))
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    return [Target("server", st.tuples(choices, st.data()), serve, 0.1)]


# --- commands --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _check_end(code: object, said: str) -> None:
    assert code in (0, 1, 2, None), code
    if code and said.startswith("disue: "):
        text = said.rstrip("\n")
        assert text.isprintable(), repr(text)
        assert len(text) <= LONGEST_LINE


def command_targets(finished: Path, place: Path) -> list[Target]:
    """Return commands with words of any kind; those that would start a run are not among them."""
    place.mkdir(parents=True)
    (place / "empty").mkdir()
    (place / "a.png").write_bytes(spoiling.images()["grey.png"])
    words = NAMES.map(lambda name: os.fsdecode(name.replace("\0", "").encode(errors="surrogatepass")))
    there = st.sampled_from([str(finished), str(place), str(place / "empty"), str(place / "a.png"), "/dev/null", "."])
    where = st.one_of(words, there, there)
    commands = st.one_of(
        st.tuples(st.just("predict"), where, where, st.just("--expert"), words | st.sampled_from(["auto", "0"])),
        st.tuples(st.just("predict"), st.just(str(finished)), where, st.just("--top"), SIZES.map(str)),
        st.tuples(st.just("assign"), where, where),
        st.tuples(st.just("export"), where, st.just("--format"), st.just("torch"), st.just("--expert"), words),
        st.tuples(st.just("report"), words, words),
        st.tuples(st.just("report"), words, st.just("--output"), words),
        st.tuples(st.just("watch"), where),
        st.tuples(st.just("certs"), words, st.just("--hosts"), words, st.just("--nodes"), SIZES.map(str)),
        st.tuples(*map(st.just, ("compare", "--methods", "none", "--output")), words, st.just("--seeds"), words),
        st.tuples(st.just("simulate"), st.just("--set"), st.builds("method=x\noutput-dir={}".format, words)),
        st.tuples(st.just("simulate"), st.just("--resume"), where, st.just("--set"), words),
        st.tuples(words, words),
    )

    def call(arguments: tuple[str, ...]) -> None:
        said = io.StringIO()
        before = os.getcwd()
        scratch = place / "scratch"
        scratch.mkdir()
        os.chdir(scratch)
        try:
            with (
                mock.patch.object(sys, "argv", ["disue", *arguments]),
                mock.patch.dict(os.environ, {"COLUMNS": "200"}),
                contextlib.redirect_stderr(said),
                _quiet(),
            ):
                main()
        except SystemExit as end:
            _check_end(end.code, said.getvalue())
        finally:
            os.chdir(before)
            shutil.rmtree(scratch)

    return [Target("commands", commands, call, 3)]

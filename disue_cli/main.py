"""The console command `disue`: argument parsing and error lines; the work is imported when it is asked for."""

import signal
import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

import disue
from disue.errors import DISK_FULL, ConfigError, DataError, DisueError, one_line
from disue_cli.terminal import drop_output, finish_output, prepare_streams, say

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Format(StrEnum):
    """How predictions are printed."""

    table = "table"
    json = "json"
    csv = "csv"


class ExportFormat(StrEnum):
    """What a model is exported to."""

    onnx = "onnx"
    torch = "torch"


class Engine(StrEnum):
    """What runs the clients of a simulation."""

    ray = "ray"
    inline = "inline"


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"disue {disue.__version__}")
        raise typer.Exit


@app.callback()
def cli(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Clustered federated learning with a distilled universal expert, on Flower."""


@app.command()
def simulate(
    clients: Annotated[
        int | None,
        typer.Option(min=1, help="Number of simulated clients. [default: 12; as --resume or --data has them]"),
    ] = None,
    engine: Annotated[
        Engine,
        typer.Option(help="`ray`: Flower's own simulation, in parallel; `inline`: this process, starts in seconds."),
    ] = Engine.ray,
    gpus_per_client: Annotated[
        float,
        typer.Option(min=0.0, help="Share of a GPU for each client (`ray`): 0 trains on the CPU, 0.25 four at once."),
    ] = 0.0,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a run config key; may be given often."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Images of your own: for each client, by its name, a folder of images per class or an .npz file; or "
            "one such folder or file that the scenario divides.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Run directory. [default: runs/&lt;date-time&gt;-&lt;method&gt;]"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Go on with the run in this directory, after its last complete round."),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(metavar="METHOD", help="Run this method, too, and compare with it; may be given often."),
    ] = None,
) -> None:
    """Simulate a federation on this machine, and print how it went and where its files are.

    With a folder of clients in --data it is the rehearsal of a deployment: clients of the same names and data come to
    the same models there.

    A baseline has the same clients, data, seed and settings, runs after the run itself, and is kept in the run
    directory's `baselines/`. The table, the report and the model card then compare with it by name. With --resume, one
    that is there goes on up to the run's last round.

    Examples:

    - disue simulate

    - disue simulate --engine inline --clients 20 --set dataset=fashion-mnist

    - disue simulate --engine inline --baseline fedavg

    - disue simulate --data hospitals/ --set input-shape=3x64x64 --set proxy=path:srv/proxy

    - disue simulate --set method=fedavg --set seed=7 --output runs/fedavg-7

    - disue simulate --resume runs/fedavg-7

    - disue simulate --resume runs/fedavg-7 --set num-server-rounds=20

    Ctrl-C, or a SIGTERM, ends the run after its round, with its models and status 0; --resume goes on with it. A second
    one ends it at once.

    All keys of --set, with defaults and meaning, are in docs/CONFIG.md.
    """
    from disue_cli.commands.simulate import simulate as run

    run(clients, engine.value, gpus_per_client, assignments or [], data, output, resume, baseline or [])


@app.command()
def compare(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where the runs, the tables and the plots are kept.")],
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Methods, each with settings of its own if wished: `disue:clusterer=kmeans`. [default: all]",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What is compared, and in which setting: `ablation`, all parts of disue on, off and exchanged; "
            "`paper`, 100 clients of which a tenth trains, Dirichlet 0.1 and 0.3; `rotated-mnist`, the task of IFCA's "
            "paper. Other options override it.",
        ),
    ] = None,
    scenarios: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y",
            help="Scenarios, each with data settings of its own if wished: `dirichlet:alpha=0.3`. "
            "[default: label-groups]",
        ),
    ] = None,
    seeds: Annotated[
        str, typer.Option(metavar="N|LIST", help="A count from 0, up to 20; or a list: `7,8,9`, `0-2`; of one: `904,`.")
    ] = "3",
    datasets: Annotated[str | None, typer.Option(metavar="D,E", help="Datasets. [default: digits]")] = None,
    clients: Annotated[int | None, typer.Option(min=1, help="Number of simulated clients. [default: 12]")] = None,
    target_accuracy: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Report the rounds and megabytes to this universal accuracy. [default: none; with `paper` and "
            "`rotated-mnist` one for each dataset]",
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a run config key in all runs; may be given often."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs at once, each on one core. [default: as many as there are cores]")
    ] = None,
) -> None:
    """Compare methods on the same clients, data, seeds and budget, in a table and in plots.

    A run that is finished is not run again when the command is repeated. Writes results.csv, table.md and
    plots/\\*.png into DIR, and every run's own directory into DIR/cells.

    Examples:

    - disue compare --output comparison

    - disue compare --methods fedavg,oracle,disue --scenarios rotation,dirichlet --seeds 5 --output comparison

    - disue compare --methods disue,disue:teacher=mean,disue:clusterer=ifca --seeds 7,8,9 --output teachers

    - disue compare --methods fedavg,disue --scenarios dirichlet:alpha=0.1,dirichlet:alpha=1 --output skew

    - disue compare --preset ablation --scenarios label-groups,rotation --output ablation

    - disue compare --preset paper --methods disue,fedavg,fedlc --output paper

    - disue compare --preset rotated-mnist --clients 240 --set num-server-rounds=60 --output rotated
    """
    from disue_cli.commands.compare import compare as run

    run(methods, preset, scenarios, seeds, datasets, clients, assignments or [], workers, output, target_accuracy)


@app.command()
def run(
    connection: Annotated[str, typer.Argument(help="A SuperLink connection in Flower's config.toml.")],
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a run config key; may be given often."),
    ] = None,
) -> None:
    """Run the app on a SuperLink whose clients are on other machines, and print its log.

    Ends with status 0 only if the run was completed. Paths in --set are on the machine of the SuperLink; the run
    directory is made there. On Ctrl-C the run goes on.

    Examples:

    - disue run disue --set dataset=own --set min-clients=4

    - disue run disue --set num-server-rounds=50 --set output-dir=/var/lib/disue/runs/first

    - disue run disue --set resume-from=/var/lib/disue/runs/first

    A run goes on with the settings that it had. Where its directory cannot be seen from here, repeat them.

    docs/DEPLOY.md shows how to start the SuperLink and the clients.
    """
    from disue_cli.commands.run import run as submit

    submit(connection, assignments or [])


@app.command()
def certs(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where they are written; missing or empty.")],
    hosts: Annotated[
        str, typer.Option(metavar="A,B", help="DNS names and IP addresses by which clients reach the SuperLink.")
    ],
    nodes: Annotated[int, typer.Option(min=1, max=10000, help="Number of SuperNodes; each gets a key pair.")],
    days: Annotated[int, typer.Option(min=1, max=36500, help="How long the certificates hold.")] = 1825,
) -> None:
    """Make the keys and certificates of a deployment, and print the commands that use them.

    Writes a CA (ca.pem, ca.key), the SuperLink's certificate (server.pem, server.key) and a key pair per SuperNode
    (nodes/node-1, nodes/node-1.pub, ...). Private files are readable by their owner only; nothing is overwritten.

    Examples:

    - disue certs certs --hosts superlink,localhost,10.0.0.5 --nodes 5

    - disue certs certs --hosts fl.example.org --nodes 20 --days 365

    docs/DEPLOY.md says which file goes to which machine.
    """
    from disue.files import user_path
    from disue_cli.commands.certs import commands, make_certificates

    names, place = [host.strip() for host in hosts.split(",")], user_path(directory, "DIR").absolute()
    make_certificates(place, names, nodes, days)
    say(f"keys and certificates: {one_line(str(place))}\n\n{commands(place, names, nodes)}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def executor(context: typer.Context) -> None:
    """Start the processes of a SuperNode's clients, as `flower-superexec` does, but quicker.

    A client process answers one message, and takes seconds to import PyTorch. This command does that once, and forks.
    All options are those of `flower-superexec` (its --help lists them); the SuperNode has `--isolation=process`.

    Examples:

    - disue executor --insecure --runtime-api-address 127.0.0.1:9094
    """
    from disue_cli.commands.executor import executor as run

    run(context.args)


@app.command()
def report(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Run directories.")],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where it is written. [default: DIR/report.html; of several: comparison.html]"
        ),
    ] = None,
) -> None:
    """Make the report of a run again, or one that compares several runs.

    A page that opens offline in any browser. A run makes its own at its end; of one that goes on or was interrupted
    this command shows what there is.

    Examples:

    - disue report runs/20260101-120000-disue

    - disue report runs/20260101-120000-disue runs/20260101-121500-fedavg --output comparison.html
    """
    from disue_cli.commands.report import report as run

    run(directories, output)


@app.command()
def watch(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Run directory.")],
) -> None:
    """Follow a run that goes on: live in a terminal, a line per phase in a pipe.

    Ends when the run does, with its status, also where it was killed. It only reads files, so it may be started and
    stopped at any time.

    Examples:

    - disue watch runs/20260101-120000-disue
    """
    from disue_cli.commands.watch import watch as run

    run(directory)


@app.command()
def predict(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Run directory.")],
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Images, folders of images, .npz files with an array `x`.")
    ],
    expert: Annotated[
        str,
        typer.Option(
            metavar="universal|auto|K",
            help="The model: the universal one, the expert of cluster K, or `auto`: for each image the expert whose "
            "clients' prototypes are nearest.",
        ),
    ] = "universal",
    top: Annotated[int, typer.Option(min=1, help="How many classes of each image.")] = 1,
    form: Annotated[Format, typer.Option("--format", help="What is printed.")] = Format.table,
    invert: Annotated[
        bool, typer.Option("--invert", help="Turn dark into light: for ink on paper, where the run saw light on dark.")
    ] = False,
) -> None:
    """Say what is in images, with a model of a run that is over.

    Images are converted as those of clients are: turned as their EXIF data say, resized to the run's input without
    keeping proportions, colour to grey by luminance.

    Examples:

    - disue predict runs/first photo.png

    - disue predict runs/first photos/ --expert auto --top 3

    - disue predict runs/first scans.npz --expert 1 --format csv > scans.csv
    """
    from disue_cli.commands.predict import predict as run

    run(directory, paths, expert, top, form.value, invert)


@app.command()
def assign(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Run directory.")],
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="A folder with a folder of images per class, or an .npz file (`x`, `y`)."),
    ],
) -> None:
    """Say which cluster of a run that is over a new client with these data would join.

    Prints by which rule, how like each cluster the client is, and how good the universal model and each expert are on
    the data; `with label shares` is how good an expert is as the run's clients use it, with the label shares of the own
    data in place of its cluster's. The rule is the run's own where its signature needs no training; else the clients'
    prototypes, or the lowest loss, decide, and the output says so. Images without labels (a folder of images, an array
    `x`) are placed by what needs no labels.

    Examples:

    - disue assign runs/first hospital-c/

    - disue assign runs/first hospital-c.npz
    """
    from disue_cli.commands.assign import assign as run

    run(directory, data)


@app.command()
def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Run directory.")],
    form: Annotated[
        ExportFormat,
        typer.Option("--format", help="`onnx` (extra `onnx`), or `torch`: a program for torch.export.load."),
    ],
    expert: Annotated[
        str, typer.Option(metavar="universal|K|all", help="The universal model, the expert of cluster K, or all.")
    ] = "universal",
    output: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="A file; with `--expert all` a folder. [default: DIR/export/]"),
    ] = None,
) -> None:
    """Write models of a run that is over as files that run without DisUE.

    The input is pixels from 0 to 1 (batch, channels, height, width), any batch size, normalised inside; the output are
    logits. Class names are in the file's metadata. Each file is compared with PyTorch before it is put in its place.

    Examples:

    - disue export runs/first --format onnx

    - disue export runs/first --format torch --expert all --output models/
    """
    from disue_cli.commands.export import export as run

    run(directory, form.value, expert, output)


def _end(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def main() -> None:
    """Run the command; bad input ends with one line and status 2, a run that failed with status 1."""
    prepare_streams()
    for ending in (signal.SIGTERM, signal.SIGHUP):  # so that engines stop what they started, as on Ctrl-C
        if signal.getsignal(ending) is not signal.SIG_IGN:  # `nohup` ignores SIGHUP
            signal.signal(ending, _end)
    try:
        try:
            app()
        finally:
            finish_output()
    except DisueError as error:
        _fail(str(error), 2 if isinstance(error, ConfigError | DataError) else 1)
    except BrokenPipeError:  # whoever read the output has gone
        drop_output()
        sys.exit(1)
    except OSError as error:  # nothing that a traceback explains
        what = f"'{error.filename}' cannot be " if error.filename else "a file or the output cannot be "
        full = error.errno in DISK_FULL
        what += f"written ({error.strerror}); make room there" if full else f"used ({error.strerror or error})"
        _fail(what, 1)


def _fail(what: str, status: int) -> NoReturn:
    with suppress(OSError):  # where nobody listens there is the status
        say(f"disue: {one_line(what)}", error=True)
    sys.exit(status)

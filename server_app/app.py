"""The Flower ServerApp."""

import signal
from logging import INFO

from flwr.app import Context
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from server_app.config import RunConfig
from server_app.run import execute
from server_app.run_directory import default_directory
from server_app.stopping import OVER, signals_stop
from strategies.rounds.transport import streaming

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what the run config says; a SIGTERM ends it after its round, SIGINT is Flower's and ends it at once."""
    config = RunConfig.from_flower(context.run_config)
    directory = default_directory(config)
    with signals_stop(directory, [signal.SIGTERM]), streaming(grid):
        execute(config.model_copy(update={"output_dir": str(directory)}), grid)
    log(INFO, OVER)

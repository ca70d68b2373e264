"""The Flower ServerApp."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from disue.config import RunConfig
from server_app.run import execute

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what the run config says."""
    execute(RunConfig.from_flower(context.run_config), grid)

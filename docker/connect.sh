#!/bin/sh
# Tell `flwr` of the SuperLink, and run the command that follows.
set -eu
mkdir -p "$FLWR_HOME"
cat >"$FLWR_HOME/config.toml" <<END
[superlink.disue]
address = "superlink:8000"
root-certificates = "/keys/public/ca.pem"
END
exec "$@"

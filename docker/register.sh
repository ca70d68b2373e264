#!/bin/sh
# Tell `flwr` of the SuperLink, register the nodes' public keys with it, and run the command that follows.
set -eu
mkdir -p "$FLWR_HOME"
cat >"$FLWR_HOME/config.toml" <<END
[superlink.disue]
address = "superlink:8000"
root-certificates = "/keys/public/ca.pem"
END
for key in /keys/public/*.pub; do
  name=$(basename "$key" .pub)
  if reply=$(flwr supernode register "$key" disue --name "$name" 2>&1); then
    echo "$name registered"
  else
    case $reply in
      *"already"*) echo "$name was registered before" ;;
      *) echo "$name: $reply" >&2 && exit 1 ;;
    esac
  fi
done
if [ $# -gt 0 ]; then exec "$@"; fi

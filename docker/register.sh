#!/bin/sh
# Register the nodes' public keys with the SuperLink, those that it does not know yet.
set -eu
for key in /keys/public/*.pub; do
  name=$(basename "$key" .pub)
  if reply=$(flwr supernode register "$key" disue --name "$name" 2>&1); then
    echo "$name registered"
  else
    case $reply in
      *"Public key already in use"*) echo "$name was registered before" ;;
      *) echo "$name: $reply" >&2 && exit 1 ;;
    esac
  fi
done

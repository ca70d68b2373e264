#!/bin/sh
# Make keys and certificates once, and give each role its own: every directory here is a volume that only the
# services of that role mount. The CA's key leaves /keys/authority never. Says nothing of what is in the files.
set -eu
umask 077
nodes=$1 hosts=$2
made=/keys/authority/made
[ -d "$made" ] || disue certs "$made" --hosts "$hosts" --nodes "$nodes" >/dev/null

# A secret for each pair of a Flower server and the executor beside it.
secret() {
  [ -s "/keys/authority/$1.secret" ] || head -c 32 /dev/urandom >"/keys/authority/$1.secret"
}

secret superlink
install -m 600 "$made/server.pem" "$made/server.key" /keys/superlink/
install -m 600 /keys/authority/superlink.secret /keys/superlink/executor.secret
install -m 600 /keys/authority/superlink.secret /keys/serverapp/executor.secret
for i in $(seq "$nodes"); do
  secret "node-$i"
  install -m 600 "$made/nodes/node-$i" "/keys/node-$i/node.key"
  install -m 600 "/keys/authority/node-$i.secret" "/keys/node-$i/executor.secret"
  install -m 600 "/keys/authority/node-$i.secret" "/keys/clientapp-$i/executor.secret"
  install -m 644 "$made/nodes/node-$i.pub" /keys/public/
done
install -m 644 "$made/ca.pem" /keys/public/
echo "keys and certificates are in their volumes"

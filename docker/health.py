"""Exit with 0 if the service in DISUE_HEALTH answers; https is checked against the CA in DISUE_CA.

The service is this container's own, so it is asked directly where there is a proxy.
"""

import os
import ssl
import sys
import urllib.request

ADDRESS = os.environ.get("DISUE_HEALTH", "")


def answers_http() -> bool:
    """Ask a SuperLink or a SuperNode."""
    trust = ssl.create_default_context(cafile=os.environ.get("DISUE_CA")) if ADDRESS.startswith("https:") else None
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust))
    with direct.open(ADDRESS, timeout=5) as reply:
        return bool(reply.status == 200)


def answers_grpc() -> bool:
    """Ask a SuperExec, which has Flower's health service on a port of its own."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    direct = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(ADDRESS.removeprefix("grpc://"), options=direct) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    try:
        healthy = not ADDRESS or (answers_grpc() if ADDRESS.startswith("grpc:") else answers_http())
    except Exception as error:
        sys.exit(f"{ADDRESS}: {error}")
    sys.exit(0 if healthy else f"{ADDRESS}: not serving")

"""The health check of the containers asks the service itself, where there is a proxy, too."""

import http.server
import subprocess
import sys
import threading
from pathlib import Path

HEALTH = Path(__file__).parents[1] / "docker" / "health.py"


class Healthy(http.server.BaseHTTPRequestHandler):
    """Answers everything with 200."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_the_health_check_goes_around_a_proxy() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/health"
        behind = {"DISUE_HEALTH": address, "http_proxy": "http://127.0.0.1:9"}
        done = subprocess.run([sys.executable, HEALTH], env=behind, capture_output=True, text=True, check=False)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    done = subprocess.run([sys.executable, HEALTH], env=behind, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert address in done.stderr

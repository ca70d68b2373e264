"""What may leave a client, by the run config key ``privacy``."""

from client_app.release.choose import choose_policy
from client_app.release.errors import withhold_errors
from client_app.release.policy import ReleasePolicy

__all__ = ["ReleasePolicy", "choose_policy", "withhold_errors"]

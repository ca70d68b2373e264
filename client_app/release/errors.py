"""What a client says of its own failure."""

from collections.abc import Callable
from functools import wraps
from logging import ERROR
from typing import TypeVar

from flwr.app import Context, Message
from flwr.common.logger import log

from disue.errors import ConfigError, FederationError

T = TypeVar("T")


def withhold_errors(answer: Callable[[Message, Context], T]) -> Callable[[Message, Context], T]:
    """With ``privacy=dp``, keep what went wrong in the client's own log; what the config alone decides is told."""

    @wraps(answer)
    def guarded(message: Message, context: Context) -> T:
        try:
            return answer(message, context)
        except (ConfigError, FederationError):
            raise
        except Exception as error:
            if context.run_config.get("privacy") != "dp":
                raise
            log(ERROR, "%s: %s", type(error).__name__, error, exc_info=True)
            raise FederationError("the client failed; privacy=dp: what went wrong is in its own log") from None

    return guarded

"""What a client still sends while it is answered already."""

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .limits import Limits

_TIMES = 4  #: the limit on a body's bytes: so much is read of one and thrown away


class RestOfBody:
    """Reads what is left of a body before the answer is sent, and throws it away.

    Many clients send all of a body before they read: they would find their connection closed, and no answer that says
    why. Of an endless body no more than a few times the limit is read; then the connection is closed.

    Args:
        app: The application.
        limits: On a body.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most, total, ended = _TIMES * self._limits.max_bytes, 0, False

        async def counted() -> Message:
            nonlocal total, ended
            message = await receive()
            total += len(message.get("body", b""))
            ended = ended or not message.get("more_body", False)
            return message

        async def after_the_rest(message: Message) -> None:
            if message["type"] == "http.response.start" and not ended and _has_body(scope):
                with anyio.move_on_after(self._limits.upload_seconds):
                    while not ended and max(total, _declared(scope)) <= most:
                        await counted()
                if not ended:
                    message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
            await send(message)

        await self._app(scope, counted, after_the_rest)


def _has_body(scope: Scope) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])


def _declared(scope: Scope) -> int:
    """The body's bytes by its header, 0 if it does not say."""
    return max((int(value[:20]) for name, value in scope["headers"] if name == b"content-length"), default=0)

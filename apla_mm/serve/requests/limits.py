"""What a client may ask for, and what is said where it asks for more."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        max_bytes: Of a request's body.
        max_pixels: Of an image, by its header; and of all images of a batch.
        upload_seconds: For a body to arrive.
        answer_seconds: For a result, from then on.
        max_requests: That upload, wait or are answered at once.
        max_batch: Images of a batch.
        max_wait: Seconds that a batch waits for more images.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 4_194_304
    upload_seconds: float = 20.0
    answer_seconds: float = 60.0
    max_requests: int = 64
    max_batch: int = 8
    max_wait: float = 0.005


class RefusedError(Exception):
    """A request that is answered with an error.

    Args:
        status: Of HTTP.
        error: What is wrong.
        cure: What to do about it.
        retry_after: Seconds, for clients that come again.
    """

    def __init__(self, status: int, error: str, cure: str, retry_after: int | None = None) -> None:
        super().__init__(error)
        self.status, self.error, self.cure, self.retry_after = status, error, cure, retry_after

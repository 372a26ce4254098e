"""The bytes of an image out of a request, and never more than a limit of them."""

from collections.abc import AsyncGenerator

import anyio
import python_multipart  # noqa: F401  starlette would miss it no sooner than a body comes
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from .limits import Limits, RefusedError

_FIELDS = 8
_RAW = ("", "application/octet-stream", "application/x-www-form-urlencoded")


async def read_upload(request: Request, limits: Limits) -> bytes:
    """The image's bytes: the body, or the one file of a multipart body.

    Args:
        request: Whose body was not read.
        limits: On its size and time.

    Raises:
        RefusedError: It is too large, too slow, of another type, damaged, or empty.
        ClientDisconnect: The client has gone.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise RefusedError(415, f"the body is encoded by {encoding[:40]!r}", "send it without Content-Encoding")
    if kind != "multipart/form-data" and kind not in _RAW and not kind.startswith("image/"):
        raise RefusedError(
            415, f"the body is of type {kind[:80]!r}", "send an image's bytes, or multipart/form-data with one file"
        )
    try:
        with anyio.fail_after(limits.upload_seconds):
            if kind != "multipart/form-data":
                data = b"".join([part async for part in _limited(request, limits)])
            else:
                data = await _file_of(request, limits)
    except TimeoutError:
        raise RefusedError(
            408, f"the body did not arrive within {limits.upload_seconds:g} s", "send a smaller image"
        ) from None
    if not data:
        raise RefusedError(400, "the body holds no image", "send an image's bytes, or multipart/form-data with one")
    return data


async def _limited(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """The body in pieces.

    Raises:
        RefusedError: It is over the limit; as soon as that is known.
    """
    total = int(request.headers.get("content-length", "0"))
    if total <= limits.max_bytes:
        total = 0
        async for part in request.stream():
            total += len(part)
            if total > limits.max_bytes:
                break
            yield part
    if total > limits.max_bytes:
        raise RefusedError(
            413, f"the body is larger than {limits.max_bytes:,} bytes", "send a smaller image, or compress it harder"
        )


class _Parser(MultiPartParser):
    spool_max_size = 2**62  # nothing goes to disk: the body is limited


async def _file_of(request: Request, limits: Limits) -> bytes:
    parser = _Parser(request.headers, _limited(request, limits), max_files=1, max_fields=_FIELDS, max_part_size=4096)
    cure = "send one file, as in curl -F image=@photo.jpg"
    try:
        form = await parser.parse()
    except (RefusedError, ClientDisconnect):
        raise
    except MultiPartException as error:
        raise RefusedError(400, f"the multipart body cannot be read: {error.message}", cure) from None
    except Exception as error:  # its header, such as a boundary that is missing
        raise RefusedError(400, f"the multipart body cannot be read: {type(error).__name__}: {error}", cure) from None
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    try:
        if len(files) != 1:
            raise RefusedError(400, f"the multipart body has {len(files)} files", cure)
        return await files[0].read()
    finally:
        await form.close()

"""The routes: health, metrics, tasks, predictions, and a page."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.resources import files
from typing import Annotated, Any, TypeVar

import fastapi_offline
from fastapi import FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from .. import __version__
from .folder import TaskFolder
from .metrics import Metrics
from .requests.images import FORMATS, decode
from .requests.limits import Limits, RefusedError
from .requests.rest_of_body import RestOfBody
from .requests.results import Format, encode
from .requests.uploads import read_upload
from .task import Task
from .worker import UnfitImageError, Worker

T = TypeVar("T")
_log = logging.getLogger("apla_mm.serve")

_GONE = 499  #: what is counted of clients that did not wait; nobody gets it
_THREADS = 2  #: that decode and encode
_PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_DOCS = {"/docs/swagger-ui-bundle.js": "text/javascript", "/docs/swagger-ui.css": "text/css"}
_ONLY_OURS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "string", "format": "binary"}},
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
_ERROR = {
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error", "cure"],
                "properties": {"error": {"type": "string"}, "cure": {"type": "string"}},
            }
        }
    }
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "What was found.", "content": {"application/json": {}, "image/png": {}}},
    **{
        status: {"description": what, **_ERROR}
        for status, what in {
            400: "The body is no whole image.",
            404: "There is no such task.",
            408: "The body came too slowly.",
            413: "Too many bytes or pixels.",
            415: "Of another type.",
            422: "A parameter is wrong, or the task cannot prepare the image.",
            429: "Too much is asked for at once; Retry-After says when to come again.",
        }.items()
    },
}


class Predictions:
    """What ``POST /v1/predict`` does, from the first byte to the last.

    Args:
        tasks: The tasks.
        worker: What predicts.
        limits: On requests.
        metrics: Where they are counted.
    """

    def __init__(self, tasks: TaskFolder, worker: Worker, limits: Limits, metrics: Metrics) -> None:
        self._tasks, self._worker, self._limits, self._metrics = tasks, worker, limits, metrics
        self._threads = ThreadPoolExecutor(_THREADS, "images")
        self.active = 0

    async def answer(self, name: str, request: Request, how: Format, score: float | None, drawn: bool) -> Response:
        """Answer a request, and count it."""
        begin, status, told = time.monotonic(), 500, "-"
        try:
            task = self._task(name)
            told = task.name
            with self._admitted():
                response = await self._answer(task, request, how, score, drawn)
            status = response.status_code
            self._metrics.seconds.labels(told).observe(time.monotonic() - begin)
            return response
        except RefusedError as error:
            status = error.status
            raise
        except (ClientDisconnect, asyncio.CancelledError):
            status = _GONE
            raise
        finally:
            self._metrics.requests.labels(told, str(status)).inc()

    async def _answer(self, task: Task, request: Request, how: Format, score: float | None, drawn: bool) -> Response:
        data = await read_upload(request, self._limits)
        end = time.monotonic() + self._limits.answer_seconds
        pixels = await self._wait(request, self._threads.submit(decode, data, self._limits), end)
        del data
        try:
            found = await self._wait(request, self._worker.submit(task, pixels), end)
        except UnfitImageError as error:
            size = f"{pixels.shape[1]} x {pixels.shape[0]}"
            raise RefusedError(
                422, f"task {task.name!r} cannot prepare an image of {size} pixels: {error}", "send one of another size"
            ) from None
        encoded = self._threads.submit(encode, found, task.name, how, score, drawn)
        content, kind = await self._wait(request, encoded, end)
        return Response(content, media_type=kind)

    def _task(self, name: str) -> Task:
        task = self._tasks.task(name)
        if task is not None:
            return task
        entry = next((one for one in self._tasks.entries if one.name == name), None)
        why = f"is not served: {entry.reason or entry.status}" if entry else "does not exist"
        raise RefusedError(404, f"task {name[:100]!r} {why}", "GET /v1/tasks lists all")

    @contextlib.contextmanager
    def _admitted(self) -> Any:
        if self.active >= self._limits.max_requests:
            raise RefusedError(
                429, f"{self.active} requests are being answered, as many as may be", "come again later", retry_after=1
            )
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1

    async def _wait(self, request: Request, future: "Future[T]", end: float) -> T:
        """A future's result, unless the client goes or the time is over: then it is cancelled."""
        work: asyncio.Future[Any] = asyncio.wrap_future(future)
        gone: asyncio.Future[Any] = asyncio.ensure_future(_gone(request))
        try:
            left = max(0.0, end - time.monotonic())
            await asyncio.wait({work, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                result: T = work.result()
                return result
            if gone.done():
                raise ClientDisconnect
            raise RefusedError(
                429, f"no result within {self._limits.answer_seconds:g} s", "come again later", retry_after=5
            )
        finally:
            work.cancel()
            gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def make_app(
    tasks: TaskFolder, worker: Worker, limits: Limits, metrics: Metrics, on_end: Callable[[], None] = lambda: None
) -> FastAPI:
    """The application.

    Args:
        tasks: The tasks that it serves.
        worker: What predicts.
        limits: On requests.
        metrics: What it counts.
        on_end: Called when all requests are answered and the server ends.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        on_end()

    app = FastAPI(
        title="apla-mm serve",
        version=__version__,
        description="Predictions of the tasks of a folder of deltas, on one base in memory.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(RestOfBody, limits=limits)
    predictions = Predictions(tasks, worker, limits, metrics)
    metrics.watch("apla_requests_active", "Predictions that upload, wait or are answered.", lambda: predictions.active)
    metrics.watch("apla_images_waiting", "Images that wait for the model.", lambda: worker.waiting)
    metrics.watch("apla_tasks", "Tasks that are served.", lambda: sum(e.task is not None for e in tasks.entries))
    _add_errors(app)
    _add_page(app)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process answers."""
        return dict(status="ok", version=__version__)

    @app.get("/ready", responses={503: {"description": "Not yet, or not any more.", **_ERROR}})
    async def ready() -> JSONResponse:
        """Whether there is a task to predict by."""
        if not worker.is_alive:
            return _error(503, "the thread of the models has ended", "start the server anew")
        if not tasks.is_read:
            return _error(503, "the folder of tasks is being read", "ask again")
        if not any(entry.task for entry in tasks.entries):
            return _error(503, "no task is served", "GET /v1/tasks says why; put a delta into the folder")
        return JSONResponse(dict(status="ready"))

    @app.get("/metrics")
    async def read_metrics() -> Response:
        """Figures in Prometheus' text format."""
        return Response(metrics.text(), media_type=metrics.content_type)

    @app.get("/v1/tasks")
    async def list_tasks() -> dict[str, Any]:
        """The tasks of the folder, also those that are not served, and the limits on requests."""
        base = tasks.base
        return dict(
            base=None if base is None else base.name,
            tasks=[entry.as_json() for entry in tasks.entries],
            limits=dict(bytes=limits.max_bytes, pixels=limits.max_pixels, formats=FORMATS),
        )

    @app.post("/v1/predict/{task}", openapi_extra=_BODY, responses=_ANSWERS)
    async def predict(
        request: Request,
        task: Annotated[str, Path(description="A task's name.")],
        format: Annotated[
            Format, Query(description="json; png, the label map; drawn, the image with what was found as PNG")
        ] = Format.JSON,
        score: Annotated[
            float | None, Query(ge=0, le=1, description="of boxes, the lowest (default: 0, of drawn ones 0.3)")
        ] = None,
        drawn: Annotated[bool, Query(description="have the drawn image in JSON too")] = False,
    ) -> Response:
        """Predict for an image: a body of its bytes, or multipart/form-data with one file."""
        return await predictions.answer(task, request, format, score, drawn)

    return app


def _error(status: int, error: str, cure: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(dict(error=error, cure=cure), status, headers)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return _error(error.status, error.error, error.cure, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        return _error(422, wrong[:500], "/docs has the parameters")

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        told = f"{request.method} {request.url.path[:100]}: {error.detail}"
        return _error(error.status_code, told, "/docs has what there is", dict(error.headers or {}))

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: ClientDisconnect) -> JSONResponse:
        return _error(_GONE, "the client has gone", "wait for the answer")

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return _error(500, f"the server failed: {type(error).__name__}", "its log has more")


def _add_page(app: FastAPI) -> None:
    """Files of a fixed list, read now: no request ever opens one."""
    page, docs = files("apla_mm.serve") / "page", files(fastapi_offline) / "static"

    def add(path: str, content: bytes, kind: str, headers: dict[str, str]) -> None:
        async def give() -> Response:
            return Response(content, media_type=kind, headers=headers)

        app.get(path, include_in_schema=False)(give)

    for path, (name, kind) in _PAGE.items():
        add(path, (page / name).read_bytes(), kind, _ONLY_OURS)
    for path, kind in _DOCS.items():
        add(path, (docs / path.rpartition("/")[2]).read_bytes(), kind, {})
    text = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="apla-mm serve",
        swagger_js_url="/docs/swagger-ui-bundle.js",
        swagger_css_url="/docs/swagger-ui.css",
        swagger_favicon_url="data:,",
    )
    add("/docs", bytes(text.body), "text/html", {})

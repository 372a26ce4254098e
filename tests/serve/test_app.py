"""A server as a process of its own: its answers against models of their own, and against wrong requests."""

import base64
import io
import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.serving import Server, multipart
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

import apla_mm
from apla_mm.api.prediction import Prediction

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(deltas: Path) -> dict[str, Any]:
    """Of each task a model of its own."""
    return {name: apla_mm.load(deltas / f"{name}.delta.safetensors", device="cpu") for name in ("regions", "objects")}


def array(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def assert_equal(told: dict[str, Any], expected: Prediction, atol: float = 0.0) -> None:
    """JSON tells a prediction; float32 survive it to the bit."""
    assert (told["height"], told["width"]) == expected.image.shape[:2] and tuple(told["classes"]) == expected.classes
    if expected.label_map is not None:
        assert told["label_map"]["encoding"] == "png;base64"
        found = array(told["label_map"]["data"])
        assert (found != expected.label_map).mean() <= (0.01 if atol else 0.0)
        return
    assert expected.boxes is not None and expected.masks is not None and len(expected.boxes) > 0
    np.testing.assert_allclose(np.float32(told["boxes"]), expected.boxes, rtol=0, atol=100 * atol)
    np.testing.assert_allclose(np.float32(told["scores"]), expected.scores, rtol=0, atol=atol)
    assert told["labels"] == expected.labels.tolist()
    masks = np.stack([coco.decode(one) for one in told["masks"]])
    assert (masks != expected.masks).mean() <= (0.01 if atol else 0.0)


def test_two_tasks_in_turn_are_models_of_their_own_to_the_bit(
    server: Server, alone: dict[str, Any], make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    tasks = server.tasks()
    assert {name: one["kind"] for name, one in tasks.items()} == {"regions": "segmentation", "objects": "detection"}
    assert all(one["status"] == "served" for one in tasks.values())
    for seed, name in enumerate(["regions", "objects", "regions", "regions", "objects", "regions"]):
        size, kind = [((72, 60), "PNG"), ((50, 90), "JPEG"), ((64, 64), "WEBP")][seed % 3]
        data = make_picture(seed, size, kind)
        (tmp_path / "file").write_bytes(data)
        assert_equal(server.predict(name, data), alone[name].predict(tmp_path / "file"))


def test_images_that_wait_together_are_batches_of_one_task(
    server: Server, alone: dict[str, Any], make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    asked = [(name, seed) for seed in range(10) for name in ("regions", "objects")]
    with ThreadPoolExecutor(20) as pool:
        told = list(pool.map(lambda one: server.predict(one[0], make_picture(one[1])), asked))
    for (name, seed), one in zip(asked, told, strict=True):
        (tmp_path / "file").write_bytes(make_picture(seed))
        assert_equal(one, alone[name].predict(tmp_path / "file"), atol=1e-4)
    figures = dict(line.rsplit(" ", 1) for line in server.ask("GET", "/metrics").body.decode().splitlines())
    for name in ("regions", "objects"):
        batches, images = (float(figures[f'apla_batch_images_{what}{{task="{name}"}}']) for what in ("count", "sum"))
        assert images > batches
    assert float(figures["apla_task_switches_total"]) >= 2 and float(figures["apla_images_waiting"]) == 0


def test_formats(server: Server, alone: dict[str, Any], make_picture: Callable[..., bytes], tmp_path: Path) -> None:
    data = make_picture(3)
    (tmp_path / "file").write_bytes(data)
    regions, objects = (alone[name].predict(tmp_path / "file") for name in ("regions", "objects"))
    labels = np.asarray(Image.open(io.BytesIO(server.predict("regions", data, "?format=png"))))
    assert np.array_equal(labels, regions.label_map)
    drawn = np.asarray(Image.open(io.BytesIO(server.predict("objects", data, "?format=drawn&score=0"))))
    assert np.array_equal(drawn, np.asarray(objects.draw(threshold=0)))
    body, headers = multipart(("image", "../../etc/passwd", data), ("note", None, b"x"))
    answer = server.ask("POST", "/v1/predict/regions?drawn=1", body, headers)
    assert answer.status == 200
    assert np.array_equal(array(answer.json["drawn"]), np.asarray(regions.draw()))
    assert sum(answer.json["pixels"].values()) == 72 * 60
    middle = float(np.median(objects.scores))
    told = server.predict("objects", data, f"?score={middle}")
    assert len(told["boxes"]) == int((objects.scores >= middle).sum())


WRONG = [
    (404, "POST", "/v1/predict/nothing", b"x", {}, "task 'nothing' does not exist"),
    (404, "POST", "/v1/predict/..%2f..%2fetc%2fpasswd", b"x", {}, "Not Found"),
    (404, "GET", "/page/../../etc/passwd", None, {}, "Not Found"),
    (405, "GET", "/v1/predict/regions", None, {}, "Method Not Allowed"),
    (400, "POST", "/v1/predict/regions", b"", {}, "holds no image"),
    (415, "POST", "/v1/predict/regions", b"not an image", {}, "no image of JPEG, PNG, WEBP, BMP"),
    (415, "POST", "/v1/predict/regions", b"{}", {"Content-Type": "application/json"}, "of type 'application/json'"),
    (415, "POST", "/v1/predict/regions", b"x", {"Content-Encoding": "gzip"}, "encoded by 'gzip'"),
    (413, "POST", "/v1/predict/regions", b"x" * 600_000, {}, "larger than 524,288 bytes"),
    (413, "POST", "/v1/predict/regions", b"x", {"Content-Length": "9" * 15}, "larger than 524,288 bytes"),
    (422, "POST", "/v1/predict/regions?format=gif", b"x", {}, "format: Input should be 'json', 'png' or 'drawn'"),
    (422, "POST", "/v1/predict/objects?score=nan", b"x", {}, "score"),
    (400, "POST", "/v1/predict/regions", b"--b", {"Content-Type": "multipart/form-data; boundary=b"}, "multipart"),
    (400, "POST", "/v1/predict/regions", b"--b", {"Content-Type": "multipart/form-data"}, "multipart"),
]


@pytest.mark.parametrize(("status", "method", "path", "body", "headers", "told"), WRONG)
def test_wrong_requests_are_told_what_is_wrong_and_what_to_do(
    server: Server, status: int, method: str, path: str, body: Any, headers: dict[str, str], told: str
) -> None:
    answer = server.ask(method, path, body, headers)
    assert answer.status == status, answer.body
    assert told in answer.json["error"] and answer.json["cure"]


def test_images_that_are_wrong(server: Server, make_picture: Callable[..., bytes]) -> None:
    assert server.ask("POST", "/v1/predict/objects?format=png", make_picture()).status == 400
    large = server.ask("POST", "/v1/predict/regions", make_picture(size=(300, 200)))
    assert large.status == 413 and "300 x 200" in large.json["error"] and "40,000" in large.json["error"]
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        cut = server.ask("POST", "/v1/predict/regions", make_picture(format=kind)[:-300])
        assert cut.status in (400, 415), (kind, cut.body)
    assert server.ask("POST", "/v1/predict/regions", make_picture(format="GIF")).status == 415
    body, headers = multipart(("a", "a.png", make_picture()), ("b", "b.png", make_picture()))
    assert "Too many files" in server.ask("POST", "/v1/predict/regions", body, headers).json["error"]
    body, headers = multipart(("a", None, b"no file"))
    assert "0 files" in server.ask("POST", "/v1/predict/regions", body, headers).json["error"]
    for size in ((1, 1), (1, 3000), (3000, 1)):
        answer = server.ask("POST", "/v1/predict/objects", make_picture(size=size))
        assert answer.status in (200, 422), answer.body


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_requests_get_no_5xx(server: Server, data: st.DataObject, make_picture: Callable[..., bytes]) -> None:
    image = bytearray(make_picture(format=data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "BMP"]))))
    for _ in range(data.draw(st.integers(0, 6))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    image = image[: data.draw(st.integers(0, len(image)))] + data.draw(st.binary(max_size=50))
    body, headers = bytes(image), {}
    if data.draw(st.booleans()):
        body, headers = multipart((data.draw(st.text("ab\x00é/", max_size=5)), "f", body))
        body = body[: data.draw(st.integers(0, len(body)))]
    kind = st.sampled_from(["image/png", "multipart/form-data", "multipart/form-data; boundary=x", "a/b", "ü"])
    if data.draw(st.integers(0, 3)) == 0:
        headers = {"Content-Type": data.draw(kind).encode("latin-1")}
    task = data.draw(st.sampled_from(["regions", "regions", "nothing", "%00", "a%2fb"]))
    query = data.draw(st.sampled_from(["", "?format=png", "?score=2", "?format=", "?score=inf", "?x=%ff"]))
    answer = server.ask("POST", f"/v1/predict/{task}{query}", body, headers)
    assert answer.status < 500, answer.body
    assert answer.status == 200 or set(answer.json) == {"error", "cure"}


def test_pages_and_figures_come_from_here_alone(server: Server) -> None:
    for path in ("/", "/page.css", "/page.js", "/docs", "/openapi.json", "/health", "/ready", "/metrics"):
        answer = server.ask("GET", path)
        assert answer.status == 200, path
        text = answer.body.decode()
        assert "https://" not in text and "http://" not in text.replace("http://www.w3.org/2000/svg", ""), path
    paths = server.ask("GET", "/openapi.json").json["paths"]
    assert {"/health", "/ready", "/metrics", "/v1/tasks", "/v1/predict/{task}"} == paths.keys()


def test_an_endless_body_is_not_read_to_its_end(server: Server) -> None:
    with socket.create_connection(server.address) as connection:
        connection.sendall(b"POST /v1/predict/regions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        sent = 0
        try:
            while sent < 50 * 2**20:
                connection.sendall(chunk)
                sent += 0x10000
        except OSError:
            pass
        assert sent < 10 * 2**20
    assert server.ask("GET", "/health").status == 200


@pytest.mark.parametrize(
    "path", ["/v1/predict/regions", "/v1/predict/nothing", "/nowhere", "/v1/predict/regions?score=2"]
)
def test_a_client_that_sends_all_before_it_reads_gets_the_answer(server: Server, path: str) -> None:
    for _ in range(5):
        answer = server.ask("POST", path, bytes(1_500_000))
        assert answer.status in (404, 413, 422) and "connection" not in answer.headers and answer.json["cure"]


def test_a_client_that_goes_is_counted_and_nothing_waits_for_it(
    server: Server, make_picture: Callable[..., bytes]
) -> None:
    data = make_picture(size=(190, 190))

    def gone() -> float:
        lines = server.ask("GET", "/metrics").body.decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if 'apla_requests_total{status="499"' in line)

    before = gone()
    for _ in range(20):
        with socket.create_connection(server.address) as connection:
            head = f"POST /v1/predict/objects HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
            connection.sendall(head.encode() + data)
    end = time.monotonic() + 60
    while gone() == before and time.monotonic() < end:
        time.sleep(0.05)
    assert gone() > before
    assert json.loads(server.ask("POST", "/v1/predict/regions", data).body)["task"] == "regions"

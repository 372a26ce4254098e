"""apla-mm benchmark as a process of its own."""

import json
from pathlib import Path

import pytest
import timm
from helpers import ROOT
from helpers.processes import Done, run

from apla_mm.commands.benchmark import parse_args

pytestmark = pytest.mark.slow

TOOL = ROOT / "tools/analysis_tools/benchmark.py"
SEGMENTOR = ROOT / "configs/seg/segformer_mit-b0_apla_8xb2-160k_ade20k-512x512.py"


def benchmark(*arguments: object, returncode: int | None = 0) -> Done:
    return run(TOOL, *arguments, "--rounds", "2", "--warm-up", "1", cwd=ROOT, returncode=returncode)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_timm_vit(tmp_path: Path) -> None:
    figures, image, traces = tmp_path / "figures.json", tmp_path / "plot.png", tmp_path / "traces"
    files = ("--json", figures, "--plot", image, "--profile", traces)
    only = ("--only", "full", "APLA r=0.25, b", "W_O split")
    done = benchmark("vit_tiny_patch16_224", "--img-size", "64", "--r", "0.25", "--recompute", "block", *only, *files)
    written = json.loads(figures.read_text())
    assert written["machine"]["device"] and written["arguments"]["img_size"] == 64
    full, split, ours = written["rows"]
    assert [row["method"] for row in (full, split, ours)] == [
        "full fine-tuning",
        "W_O split, r=0.25",
        "APLA r=0.25, block",
    ]
    head = 192 * 150 + 150
    backbone = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64)
    assert full["trained"] == sum(parameter.numel() for parameter in backbone.parameters()) + head
    assert split["trained"] == ours["trained"] == 12 * 48 * (192 + 1) + head
    for row in (full, split, ours):
        assert row["gradient_bytes"] == 4 * row["trained"]
        assert len(row["all_step_seconds"]) == 2 and row["step_seconds"] > 0
        assert row["peak_bytes"] > 100 * 2**20
    assert full["saved_ratio"] == full["step_ratio"] == full["peak_ratio"] == 1.0
    assert ours["saved_ratio"] == ours["saved_bytes"] / full["saved_bytes"] < 0.1
    assert full["backward_flops"] > 1.9 * full["forward_flops"]
    assert split["backward_flops"] < 1.1 * split["forward_flops"] == pytest.approx(1.1 * full["forward_flops"])

    header, _, *rows = [cells(line) for line in done.stdout.splitlines() if line.startswith("|")]
    assert header[0] == "method" and header[-1] == "time, ms" and [row[0] for row in rows][1] == split["method"]
    assert rows[2][1] == f"{ours['trained']:,}" and f"({ours['saved_ratio']:.3f})" in rows[2][2]
    assert image.read_bytes().startswith(b"\x89PNG")
    assert sorted(folder.name for folder in traces.iterdir()) == [
        "APLA_r=0.25_block",
        "W_O_split_r=0.25",
        "full_fine-tuning",
    ]
    assert "traceEvents" in json.loads((traces / "APLA_r=0.25_block/trace.json").read_text())
    assert "_PartialLinearFunction" in (traces / "APLA_r=0.25_block/operators.txt").read_text()


def test_a_whole_model_from_its_config_and_a_method_that_does_not_fit_it(tmp_path: Path) -> None:
    figures, only = tmp_path / "figures.json", ("--only", "full", "W_O split", "APLA r=8")
    done = benchmark(SEGMENTOR, "--img-size", "64", "--r", "8", "--recompute", "block", *only, "--json", figures)
    assert "W_O split, r=8: not measured: ValueError: nn.MultiheadAttention never calls its projection" in done.stdout
    rows = {row["method"]: row for row in json.loads(figures.read_text())["rows"]}
    assert list(rows) == ["full fine-tuning", "W_O split, r=8", "APLA r=8", "APLA r=8, block"]
    kept = [row["saved_bytes"] for row in rows.values() if "error" not in row]
    assert sorted(kept, reverse=True) == kept
    assert rows["APLA r=8"]["trained"] < 0.2 * rows["full fine-tuning"]["trained"]


def test_inference_adds_the_merged_model(tmp_path: Path) -> None:
    figures = tmp_path / "new" / "figures.json"
    options = ("--inference", "--img-size", "32", "--r", "8", "500", "--only", "full", "APLA", "--json", figures)
    done = benchmark("vit_tiny_patch16_224", *options)
    *rows, too_large, _ = json.loads(figures.read_text())["rows"]
    assert [row["method"] for row in rows] == ["full fine-tuning", "APLA r=8", "APLA r=8, merged"]
    assert rows[0]["step_ratio"] == 1.0 and rows[2]["step_ratio"] > 0
    assert "r=500 does not fit" in too_large["error"]
    assert "APLA r=500, merged: not measured: ValueError: r=500 does not fit" in done.stdout


def test_compiled_variants_stand_beside_the_others(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    options = ("--img-size", "32", "--r", "8", "--recompute", "--only", "APLA", "--compile", "--json", figures)
    benchmark("vit_tiny_patch16_224", *options)
    rows = json.loads(figures.read_text())["rows"]
    assert [row["method"] for row in rows] == ["APLA r=8", "APLA r=8, compiled"]
    assert all(row["step_ratio"] > 0 for row in rows) and rows[0]["trained"] == rows[1]["trained"]
    assert "peak_bytes" in rows[0] and "peak_bytes" not in rows[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["vit_tiny_patch16_224", "--only", "LoRaX"],
            "no method's name begins so; there are ['full fine-tuning', 'all trains",
        ),
        (["vit_tiny_patch17"], "has no model 'vit_tiny_patch17'; near to it are vit_tiny_patch16_384"),
        (["configs/seg/none.py"], "none.py"),
        (["vit_tiny_patch16_224", "--inference", "--plot", "x.png"], "--inference has no memory to plot"),
        (["vit_tiny_patch16_224", "--memory", "12 apples"], "'12 apples' is no size such as 12GiB"),
        (["vit_tiny_patch16_224", "--count", "--compile"], "--count and --memory run nothing"),
        (["configs/det/apla_vitb_coco.py", "--count"], "a detector's loss depends on what it finds"),
    ],
)
def test_bad_input_is_told_in_one_line(arguments: list[str], message: str) -> None:
    done = benchmark(*arguments, "--img-size", "32", returncode=None)
    assert done.returncode in (1, 2) and message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_counting_gives_what_running_gives(tmp_path: Path) -> None:
    ran, counted = tmp_path / "ran.json", tmp_path / "counted.json"
    options = ("--img-size", "64", "--r", "8", "--recompute", "block", "--only", "full", "APLA r=8,")
    benchmark(SEGMENTOR, *options, "--json", ran)
    done = benchmark(SEGMENTOR, *options, "--json", counted, "--count")
    keys = ("method", "trained", "saved_bytes", "gradient_bytes", "optimizer_bytes", "forward_flops", "backward_flops")
    real, ours = (
        [{key: row[key] for key in keys} for row in json.loads(f.read_text())["rows"]] for f in (ran, counted)
    )
    assert real == ours and "counted, not run" in done.stdout


def test_the_largest_batch_within_a_memory_and_how_to_train_it(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    options = ("--img-size", "64", "--r", "8", "--recompute", "block", "--only", "full", "head", "APLA r=8,")
    benchmark(SEGMENTOR, *options, "--memory", "0.5GiB", "--json", figures)
    full, head, ours = json.loads(figures.read_text())["rows"]
    assert 2 < full["batch_size"] < head["batch_size"] and full["batch_size"] < ours["batch_size"]
    assert all(row["peak_bytes"] <= 2**29 for row in (full, head, ours))
    batch = f"train_dataloader.batch_size={ours['batch_size']}"
    assert ours["options"] == f"{batch} method=apla:r=8,recompute=block"
    assert head["options"].endswith(" method=head") and full["options"].endswith(" method=full")


def test_a_device_that_is_not_there_is_told_before_anything_is_built(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(["vit_tiny_patch16_224", "--device", "gpu"])
    assert "device 'gpu' is not one of this machine" in capsys.readouterr().err

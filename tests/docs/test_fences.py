"""What is found in a page, and that a command with an option that does not exist is refused."""

from pathlib import Path

import pytest
from helpers import ROOT
from helpers.documentation.fences import code_in
from helpers.documentation.programs import parse_program

PAGE = """
# A page

Run `apla-mm check CONFIG`.

```bash
# a comment
apla-mm train CONFIG \\
    --amp
echo 1 > file
```

```console
$ apla-mm traffic CONFIG
| a table |
```

```
apla-mm info FILE
```

```
not a command
```

<!-- before: x = 1 -->
<!-- arguments: CONFIG 64 -->

```python
print(x)
```

```python
custom_hooks = [dict(type="APLAHook")]
```

```python
images = 3
```
"""


def test_the_code_of_a_page_is_found(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    found = [(code.kind, code.text.strip(), code.argument) for code in code_in(path, "page.md")]
    assert found == [
        ("named", "apla-mm check CONFIG", ""),
        ("command", "apla-mm train CONFIG --amp", ""),
        ("command", "echo 1 > file", ""),
        ("command", "apla-mm traffic CONFIG", ""),
        ("command", "apla-mm info FILE", ""),
        ("script", "x = 1\nprint(x)", "CONFIG 64"),
        ("config", 'custom_hooks = [dict(type="APLAHook")]', ""),
        ("script", "images = 3", ""),
    ]
    assert [code.place for code in code_in(path, "page.md")][:2] == ["page.md:4", "page.md:6"]


def test_python_that_does_not_parse_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("```python\nx = {..., 'a': 1}\n```\n")
    with pytest.raises(SyntaxError):
        list(code_in(path, "page.md"))


CONFIG = "apla_mm::seg/apla_vitb_custom.py"


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (["apla-mm", "train", CONFIG, "--amp"], ["--no-such-option"]),
        (["apla-mm", "benchmark", "vit_tiny_patch16_224", "--count"], ["--no-such-option"]),
        (["make", "bench", "BENCH_ARGS=--count"], ["BENCH_ARGS=--no-such-option"]),
        (["make", "test"], ["no-such-target"]),
        (["pip", "install", "onnx"], ["--no-such-option"]),
        (["curl", "-F", "image=@README.md", "http://127.0.0.1:8000/v1/predict/a"], ["--no-such-option"]),
        (["curl", "http://127.0.0.1:8000/v1/tasks"], ["-F", "image=@no_such_file"]),
        (["torchrun", "--nproc-per-node", "8", "-m", "apla_mm", "train", CONFIG], ["--no-such-option"]),
        (["sbatch", "--nodes=2", "tools/slurm_requeue.sbatch", CONFIG], ["--no-such-option"]),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_what_is_parsed_alone_is_parsed(right: list[str], wrong: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    parse_program(right[0], right[1:])
    with pytest.raises(SystemExit):
        parse_program(right[0], [*right[1:], *wrong])
    with pytest.raises(SystemExit):
        parse_program("apla-mm", ["train", "no_such_config.py"])
    with pytest.raises(SystemExit):
        parse_program("curl", ["http://127.0.0.1:8000/v1/no_such_route"])

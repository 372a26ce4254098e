"""What a published model is, as the README.md of its folder."""

from collections.abc import Mapping
from typing import Any

from ..convert.config_text import read_config, summary
from ..text import format_bytes, table

_TASKS = {"mmseg": "image-segmentation", "mmdet": "object-detection", "mmpretrain": "image-classification"}


def card(
    title: str,
    config: str,
    *,
    license: str,
    size: int,
    metrics: Mapping[str, Any],
    facts: Mapping[str, str],
    base_model: str | None = None,
    data: str | None = None,
    file: str = "",
) -> str:
    """Write a card: settings that a hub reads, and a page for people.

    Args:
        title: Of the model.
        config: Its config's text.
        license: Of these weights, as a hub calls it, such as ``'apache-2.0'``.
        size: Of the file in bytes.
        metrics: Scores by name.
        facts: Further lines, name to text.
        base_model: What the weights were adapted from, as a hub calls it.
        data: What they were trained on.
        file: Name of the file of weights.
    """
    import yaml

    settings = read_config(config)
    scope = settings.get("default_scope")
    head: dict[str, Any] = dict(license=license, library_name="apla_mm", tags=["apla_mm", "apla"])
    if scope in _TASKS:
        head["pipeline_tag"] = _TASKS[scope]
    if base_model:
        head["base_model"] = base_model
    scores = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    rows = [(name, f"{value:.2f}") for name, value in scores.items()]
    about = [("model", summary(config) or "not stated"), ("license", license)]
    about += [("adapted from", base_model)] if base_model else []
    about += [("trained on", data)] if data else []
    about += [*facts.items(), ("file", f"{file}, {format_bytes(size)}")]
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {title}",
        table(("", ""), about, left=2, markdown=True),
    ]
    if rows:
        parts.append(f"## Scores\n\n{table(('metric', 'validation'), rows, markdown=True)}")
    parts.append(
        "## Use\n\n```python\nimport apla_mm\n\napla_mm.load('FOLDER').predict('image.jpg')  # or 'hf://user/name'\n```\n\n"
        f"`apla-mm test config.py {file}` scores it; `apla-mm info {file}` says what it holds."
    )
    return "\n\n".join(parts) + "\n"

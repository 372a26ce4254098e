"""What a config's text says, read without running it."""

import ast
from typing import Any, TypeGuard

_LONGEST = 2**20  # characters; longer texts take Python's parser minutes and gigabytes
_ERRORS = (SyntaxError, ValueError, RecursionError, MemoryError)


def read_config(text: str) -> dict[str, Any]:
    """The settings in a config's text, as mmengine writes it into checkpoints.

    The text may come from anyone, and mmengine would run it as Python. Here it is only parsed.

    Args:
        text: The text.

    Returns:
        The settings that are dicts, lists, tuples and plain values, None in place of others; of a text that cannot be
        parsed, or is longer than a million characters, none.
    """
    if len(text) > _LONGEST:
        return {}
    try:
        settings = {}
        for statement in ast.parse(text).body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                settings[statement.targets[0].id] = _value(statement.value)
        return settings
    except _ERRORS:
        return {}


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg}
    if isinstance(node, ast.Dict):
        items = zip(node.keys, node.values, strict=True)
        return {key.value: _value(value) for key, value in items if _is_text(key)}
    if isinstance(node, ast.List | ast.Tuple):
        values = [_value(element) for element in node.elts]
        return tuple(values) if isinstance(node, ast.Tuple) else values
    try:
        value = ast.literal_eval(node)
    except _ERRORS:
        return None
    return value if isinstance(value, str | int | float) else None  # what JSON can hold


def _is_text(node: ast.expr | None) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def summary(text: str) -> str:
    """A config in a few words: types of model, backbone and heads."""
    model = read_config(text).get("model")
    if not isinstance(model, dict):
        return ""
    parts = [str(model["type"])] if model.get("type") else []
    for name in ("backbone", "neck", "decode_head", "rpn_head", "roi_head", "bbox_head"):
        part = model.get(name)
        if isinstance(part, dict) and part.get("type"):
            extra = f" {part['model_name']}" if part.get("model_name") else ""
            parts.append(f"{name} {part['type']}{extra}")
    return ", ".join(parts)

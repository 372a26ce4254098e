"""What a config's text says, read without running it."""

import ast
from typing import Any

_ERRORS = (SyntaxError, ValueError, RecursionError, MemoryError)


def read_config(text: str) -> dict[str, Any]:
    """The settings in a config's text, as mmengine writes it into checkpoints.

    The text may come from anyone, and mmengine would run it as Python. Here it is only parsed.

    Args:
        text: The text.

    Returns:
        The settings that are dicts, lists, tuples and plain values; of a text that cannot be parsed none.
    """
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
        return {key.value: _value(value) for key, value in items if isinstance(key, ast.Constant)}
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(element) for element in node.elts]
    try:
        return ast.literal_eval(node)
    except _ERRORS:
        return None


def apla_settings(text: str) -> dict[str, Any]:
    """What of APLA a config asks for: ``r``, ``seed`` and so on, of the backbone's ``apla`` or of the hook.

    Args:
        text: The config's text.

    Returns:
        The arguments that are written there. None if the text asks for several different ones.
    """
    config = read_config(text)
    found = [settings for settings in _asked(config) if settings]
    return found[0] if found and all(settings == found[0] for settings in found) else {}


def _asked(value: Any) -> list[dict[str, Any]]:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found = [settings for child in children for settings in _asked(child)]
    if isinstance(value, dict):
        if isinstance(value.get("apla"), dict):
            found.append(value["apla"])
        if value.get("type") == "APLAHook":
            found.append({key: value[key] for key in ("r", "seed", "blocks", "trainable") if key in value})
    return found


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

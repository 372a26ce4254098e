"""Config files by path or by name: ``apla_mm::seg/apla_vitb_ade.py`` is one that comes with the package.

They lie in ``.mim/configs`` of their package, where OpenMMLab's packages have theirs. In a clone that is a link to
``configs/``.
"""

import argparse
import re
import traceback
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .text import first_few

if TYPE_CHECKING:
    from mmengine.config import Config

PACKAGE = "apla_mm"
_MOST = 4  # names that an error suggests


def shipped_configs(package: str = PACKAGE) -> list[str]:
    """Names of a package's configs, without those that only others are made of.

    Args:
        package: Of OpenMMLab's kind.

    Returns:
        Names as in ``apla_mm::seg/apla_vitb_ade.py``, sorted.

    Raises:
        FileNotFoundError: There is no such package, or it has no configs.
    """
    folder = _folder(package)
    found = (path.relative_to(folder) for path in folder.rglob("*.py"))
    return sorted(f"{package}::{path.as_posix()}" for path in found if "_base_" not in path.as_posix())


def find_config(name: str) -> Path:
    """The file of a config.

    Args:
        name: A path, or ``package::path`` with a path in that package's configs.

    Raises:
        FileNotFoundError: There is no such file. It says which names are near.
    """
    package, scoped, inside = name.partition("::")
    path = _folder(package) / inside if scoped else Path(name).expanduser()
    if path.is_file():
        return path
    if not scoped:
        package, inside = PACKAGE, name
    raise FileNotFoundError(f"there is no config '{name}'{_suggestion(inside, package)}")


def config_argument(text: str) -> str:
    """Type of a command's argument that names a config; gives its path."""
    try:
        return str(find_config(text))
    except FileNotFoundError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def read_config(path: str | Path) -> "Config":
    """Read a config whose bases may be configs of this package, ``_base_ = 'apla_mm::seg/apla_vitb_ade.py'``.

    mmengine marks what comes from another package's config by that package's scope. The parts of this package's configs
    are those of the config's own scope, mmseg or mmdet: without the mark the config is as one with a base by path.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: It, or a base of it, does not exist.
        ValueError: It is no Python, or its code fails.
    """
    from mmengine.config import Config

    from . import registration  # noqa: F401  has mmengine know the package's name

    try:
        cfg = Config.fromfile(path)
        _leave_scope(cfg._cfg_dict)
    except FileNotFoundError as error:
        raise FileNotFoundError(_without_base(path, error)) from error
    except Exception as error:  # whatever the code of a config may raise
        raise ValueError(f"config '{path}' cannot be read: {_where(path, error)}") from error
    return cfg


def read_model_config(path: str | Path) -> "Config":
    """:func:`read_config` of a config that describes a model.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: It, or a base of it, does not exist.
        ValueError: It is no Python, its code fails, or it has no model.
    """
    cfg = read_config(path)
    if not isinstance(cfg.get("model"), dict):
        raise ValueError(f"config '{path}' has no model=dict(...): add one, or name another file")
    return cfg


def _without_base(path: str | Path, error: FileNotFoundError) -> str:
    """Which file a config is based on, or opens, and does not find."""
    found = re.search(r'"(.*)"', str(error))
    missing = Path(found[1] if found else error.filename or "")
    if missing == Path() or missing == Path(path):
        return str(error)
    folder = _folder(PACKAGE)
    if not missing.is_relative_to(folder):
        return f"config '{path}': there is no file '{missing}', which it names"
    inside = missing.relative_to(folder).as_posix()
    return f"'{path}': there is no config '{PACKAGE}::{inside}' to base it on{_suggestion(inside, PACKAGE)}"


def _where(path: str | Path, error: Exception) -> str:
    """What is wrong with a config's code, and in which line."""
    if isinstance(error, SyntaxError):  # of a base, which mmengine does not name, as well as of the file
        return f"line {error.lineno}, {(error.text or '').strip()!r}: {error.msg}"
    frames = [one for one in traceback.extract_tb(error.__traceback__) if Path(one.filename).suffix == ".py"]
    own = [one for one in frames if Path(one.filename).parent.resolve() == Path(path).parent.resolve()]
    place = f"line {own[-1].lineno} of '{Path(own[-1].filename).name}': " if own else ""
    return f"{place}{type(error).__name__}: {error}"


def _leave_scope(value: Any) -> None:
    if isinstance(value, dict):
        if value.get("_scope_") == PACKAGE:
            del value["_scope_"]
        value = list(value.values())
    for one in value if isinstance(value, list | tuple) else ():
        _leave_scope(one)


def _folder(package: str) -> Path:
    spec = find_spec(package) if package.isidentifier() else None
    folder = Path(spec.origin).parent / ".mim/configs" if spec is not None and spec.origin else None
    if folder is None or not folder.is_dir():
        why = "is not installed" if folder is None else f"has no folder {folder}"
        raise FileNotFoundError(f"'{package}::...' names a config of the package {package}, which {why}")
    return folder


def _suggestion(wanted: str, package: str) -> str:
    """The names that are nearest to one that does not exist, as the end of a message."""
    names = shipped_configs(package)
    inside = {name.partition("::")[2]: name for name in names}
    stem = Path(wanted).stem
    near = [path for path in inside if stem and stem in path]
    near += get_close_matches(wanted, inside, n=_MOST, cutoff=0.5)
    stems = {Path(path).stem: path for path in inside}
    near += [stems[one] for one in get_close_matches(stem, stems, n=_MOST, cutoff=0.6)]
    found = list(dict.fromkeys(near))
    if not found:
        return f"; apla-mm configs lists those of {package}" if package == PACKAGE else ""
    return f"; near to it are {first_few((inside[path] for path in found[:_MOST]), _MOST)}"

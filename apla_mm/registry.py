"""The scope ``apla_mm``: where mmengine looks for the parts of a config whose base is named as ``apla_mm::...``.

mmengine has such parts built in the scope of the package that the base came from, and imports this module for it. This
package's configs have a ``default_scope``, mmseg or mmdet, and mean the parts of that: so do these registries. They are
for ``Config.fromfile``; :func:`apla_mm.config_files.read_config` leaves the scope out.
"""

from typing import Any

from mmengine import registry as roots
from mmengine.registry import DefaultScope, Registry

SCOPE = "apla_mm"


class ScopeOfConfig(Registry):
    """Has what the registry of the config's own scope has."""

    def get(self, key: str) -> Any:
        """A part by its name, of the scope that was the default one before this scope was entered."""
        scopes = [one.scope_name for one in DefaultScope._instance_dict.values() if one.scope_name != SCOPE]
        with self.switch_scope_and_registry(scopes[-1] if scopes else None) as registry:
            return super().get(key) if registry is self else registry.get(key)


REGISTRIES = [
    ScopeOfConfig(root.name, parent=root, scope=SCOPE, locations=["apla_mm.registration"])
    for root in vars(roots).values()
    if isinstance(root, Registry) and root.parent is None
]

"""The components that come with the toolkit. Importing this package registers all of them.

A component is a file in the folder of its kind, or a folder there if it needs helpers. Adding the file is enough:
nothing has to be listed here.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

_SHARED = "common"
"""The folder of the code that several kinds share. It registers nothing."""

# One level below each kind and no deeper: the helpers of a component are imported by the component that needs them.
for _kind in iter_modules(__path__):
    if _kind.name != _SHARED:
        for _component in iter_modules(import_module(f"{__name__}.{_kind.name}").__path__):
            import_module(f"{__name__}.{_kind.name}.{_component.name}")

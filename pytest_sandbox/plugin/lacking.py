"""A fixture that an image has not, because it has not the plugin: the error names that. ``briefing`` asks outside which
plugin has which; ``visiting`` has it said inside.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from . import compat


def owners(config: pytest.Config) -> dict[str, str]:
    """The fixtures that plugins of this run have: the name of each, and its plugin as one installs or loads it."""
    named = {id(plugin): str(dist.project_name) for plugin, dist in config.pluginmanager.list_plugin_distinfo()}
    asked = set(map(str, config.option.plugins or ()))  # by -p: they need not be installed
    found: dict[str, str] = {}
    for name, plugin in config.pluginmanager.list_name_plugin():
        owner = named.get(id(plugin)) or (name if name in asked else None)
        if plugin is not None and owner not in (None, "pytest-sandbox"):
            found.update(dict.fromkeys(compat.fixtures_of_plugin(plugin), str(owner)))
    return found


class Lacking:
    """In an image: a plugin that says whose fixture it is that was not found.

    :param owners: as :func:`owners` told.
    :param image: what to call it.
    """

    def __init__(self, owners: dict[str, str], image: str) -> None:
        self._owners, self._image = owners, image

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[
            None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.excinfo is not None and isinstance(call.excinfo.value, pytest.FixtureLookupError):
            self._explain(str(call.excinfo.value.argname), item.config, report.longrepr)
        return report

    def _explain(self, name: str, config: pytest.Config, shown: Any) -> None:
        owner, said = self._owners.get(name), getattr(shown, "errorstring", None)
        if owner is None or not isinstance(said, str):
            return
        first, _, rest = said.partition("\n")
        here = {str(dist.project_name) for _, dist in config.pluginmanager.list_plugin_distinfo()}
        if owner in here or config.pluginmanager.has_plugin(owner):
            why = f"it is a fixture of {owner}, which image {self._image!r} has in another version"
        else:
            why = f"it is a fixture of {owner}, which image {self._image!r} has not"
        shown.errorstring = (f"{first}: {why}\nInstall what this run has in the image: in its Containerfile, or by the "
                             f"ini option sandbox_requirements\n{rest}")

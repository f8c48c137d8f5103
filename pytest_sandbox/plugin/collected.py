"""What a guest has collected, beside what the caller's session has: the same tests, or an error. Used by ``hosting``.

What a guest says is believed in nothing but what it is about: its own tests.
"""

from __future__ import annotations

from typing import Any

import pytest

from pytest_sandbox.errors import SandboxGuestError

#: Plugins that have their say outside only.
_NOT_MISSED = frozenset({"pytest-sandbox", "pytest-xdist", "pytest-html", "pytest-reportlog", "pytest-split",
                         "pytest-randomly", "pytest-metadata", "pytest-forked", "pytest-rerunfailures",
                         "pytest-timeout", "pytest-cov"})


class Collected:
    """Of one guest; made from what it ``told``.

    :param image: what to call it in errors.
    :raises SandboxGuestError: when that is not an answer.
    """

    def __init__(self, session: pytest.Session, image: str, told: Any) -> None:
        self._session, self._image = session, image
        ours = {str(dist.project_name) for _, dist in session.config.pluginmanager.list_plugin_distinfo()}
        try:
            self.positions = {str(one): int(place) for one, place in told["positions"].items()}
            self.lacking = sorted((ours - set(map(str, told["plugins"])) - _NOT_MISSED)
                                  | set(map(str, told["lacking"])))
            self._problems = {str(name): str(text) for name, text in told["problems"].items()}
            self.path = [str(one) for one in told["path"]]
            self._ids = [str(one) for one in told["ids"]]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise SandboxGuestError(f"the guest of image {image!r} sent what is not an answer", image=image,
                                    why=f"{type(error).__name__}: {error}"[:500]) from None

    def position(self, item: pytest.Item) -> int:
        """Where the guest has ``item``.

        :raises SandboxGuestError: when it collected something else; shows both sides.
        """
        place = self.positions.get(item.nodeid)
        if place is not None:
            return place
        file = item.nodeid.partition("::")[0]
        near = [text for name, text in self._problems.items() if not name or item.nodeid.startswith(name)
                or name == file]
        if near:
            raise SandboxGuestError(f"{item.nodeid} cannot be collected in image {self._image!r}", image=self._image,
                                    why="\n" + "\n\n".join(near).strip(), remedy=self._without())
        base = item.nodeid.partition("[")[0]
        inside = [one for one in self._ids if one.partition("[")[0] == base]
        outside = [one.nodeid for one in self._session.items if one.nodeid.partition("[")[0] == base]
        raise SandboxGuestError(
            f"{item.nodeid} is not what image {self._image!r} collects", image=self._image,
            why=f"outside there are {_listed(outside)}; inside there are {_listed(inside)}",
            remedy="Parameters that a test takes from its Python or system must be the same in both: choose them "
                   "inside of the test, or in a fixture of function scope." + (
                       f" {without}" if (without := self._without()) else ""))

    def _without(self) -> str | None:
        """What may be why, where plugins are missing: they bring parameters, markers, kinds of tests."""
        if not self.lacking:
            return None
        return f"The image has no {', '.join(self.lacking)}: if the test is in need of that, install it there."


def _listed(ids: list[str]) -> str:
    if not ids:
        return "none"
    return ", ".join(ids[:10]) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")

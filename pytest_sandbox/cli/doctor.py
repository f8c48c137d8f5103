"""``pytest-sandbox doctor``: what this host can do, what it cannot, why, and the remedy."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_sandbox.runtime.probe import Finding


def register(commands: Any) -> None:
    """Adds the subcommand to the parser."""
    parser = commands.add_parser(
        "doctor", help="say what this host can do, what it cannot, why, and the remedy",
        description="Tries every ability that a sandbox needs, by doing it. Exits with 1 if the default sandbox "
                    "cannot run here.")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--clean", action="store_true",
                        help="show and remove what killed runs of yours have left, and nothing else; no probes")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Runs the probes, starts one sandbox for real, and prints what was found."""
    if sys.platform != "linux":
        print("Sandboxes need Linux. Here the plugin only follows --sandbox-unavailable.")
        return 1
    if given.clean:
        from pytest_sandbox.cli.clean import clean
        return clean(given.json)
    from pytest_sandbox.runtime.cgroups import findings as limits
    from pytest_sandbox.runtime.probe import probe
    from pytest_sandbox.runtime.probe_net import findings as probe_networks
    findings = probe()
    controlled = limits()
    networks = probe_networks() if all(one.ok or not one.needed for one in findings) else []
    failure = None if any(one.needed and not one.ok for one in findings) else _start_one(findings)
    usable = failure is None and all(one.ok or not one.needed for one in findings)
    if given.json:
        print(json.dumps({"usable": usable, "who": _who(), "kernel": os.uname().release, "failure": failure,
                          "findings": [asdict(one) for one in findings],
                          "limits": [asdict(one) for one in controlled],
                          "networks": [asdict(one) for one in networks]}, indent=2))
    else:
        print(_text(findings, controlled, networks, usable, failure))
    return 0 if usable else 1


def _start_one(findings: list[Finding]) -> str | None:
    """The proof of the pudding: the default sandbox, started and used. Returns why it failed.

    Adds to ``findings`` what only root's sandboxes can have.
    """
    from pytest_sandbox import Sandbox, SandboxError
    from pytest_sandbox.planning import unshifted
    from pytest_sandbox.runtime.probe import shifted_ids
    try:
        with Sandbox() as sandbox:
            sandbox.run(["true"], check=True)
            if sandbox._ready().host.privileged:
                findings.append(shifted_ids(unshifted(sandbox.spec)))
    except (SandboxError, OSError) as error:
        return str(error)
    return None


def _who() -> str:
    from pytest_sandbox.runtime.supervisor import find_host
    host = find_host()
    if host.privileged:
        return "root"
    return f"uid {host.uid}, unprivileged" if host.uid else "uid 0 without CAP_SYS_ADMIN: treated as unprivileged"


def _text(findings: list[Finding], controlled: list[Finding], networks: list[Finding], usable: bool,
          failure: str | None) -> str:
    lines = [f"Linux {os.uname().release}, {os.uname().machine}, as {_who()}", "", *_listed(findings), "",
             "Limits and usage:", "", *_listed(controlled, True), ""]
    if networks:
        lines += ["Networks:", "", *_listed(networks), ""]
    if usable:
        lines.append("The default sandbox runs here.")
    else:
        lines.append("The default sandbox cannot run here" + (f": {failure}" if failure else "."))
    return "\n".join(lines)


def _listed(findings: list[Finding], how: bool = False) -> list[str]:
    lines = []
    seen: set[str] = set()
    for one in findings:
        mark = "yes" if one.ok else "NO " if one.needed else "no "
        lines.append(f"  {mark}  {one.what}  [{one.name}]" + (f"  {one.found}" if how and one.ok else ""))
        if not one.ok and one.found in seen:
            lines.append("         as above")
        elif not one.ok:
            seen.add(one.found)
            lines += [f"         found:   {one.found}", f"         so:      {one.follows}",
                      f"         remedy:  {one.remedy}"]
    return lines

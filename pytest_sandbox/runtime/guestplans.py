"""What plans of guests and of their tests' sandboxes have of their own. Used by :mod:`.guests` and ``planning``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

from .boarding import LAYER
from .plan import Host, Plan, disk_of


def nested(host: Host) -> Host:
    """The host as the plans of guests and of their sandboxes see it."""
    return replace(host, nested=True, ids=None)


def upon(plan: Plan) -> Plan:
    """The plan of a sandbox whose files are those that its guest sees."""
    def stands(step: list[Any]) -> list[Any]:
        if step[0] != "overlay":
            return step
        name, number, target, lowers, *rest = step
        return [name, number, target, [*lowers, f"{LAYER}/{number}/upper"], *rest]

    template = [[step[0], step[1], [*step[2], f"{LAYER}/{step[1].rpartition('/')[2].partition('.')[0]}/upper"]]
                if step[0] == "own_names" else step for step in plan.body["template"]]
    body = {**plan.body, "mounts": [stands(step) for step in plan.body["mounts"]], "template": template,
            "layers": f"{plan.body['layers']}"}
    return replace(plan, body=body, key=hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:24])


def disk(plan_spec: Any) -> int | None:
    """The size of a guest's own layer."""
    return disk_of(plan_spec)

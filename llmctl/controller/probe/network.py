"""Pure parsers of a host's interfaces and its RDMA fabric."""

from __future__ import annotations

import json
import re
from typing import Any

from llmctl.controller.probe.lines import blocks, number, pairs, whole
from llmctl.controller.probe.machine import FabricPort, Interface

_KINDS = {"1": "ethernet", "32": "infiniband", "772": "loopback", "65534": "tunnel"}
"""/sys/class/net/*/type is the kernel's ARPHRD number."""


def interfaces(links: str, addresses: str) -> tuple[Interface, ...]:
    """What /sys/class/net says, with the addresses that `ip -j addr` knows; either may be missing."""
    by_name = _addresses(addresses)
    found = {name: _link(name, lines, by_name.get(name, {})) for name, lines in blocks(links, "link")}
    for name, entry in by_name.items():
        if name not in found and not name.startswith("veth"):
            found[name] = _link(name, [], entry)
    return tuple(found.values())


def _link(name: str, lines: list[str], entry: dict[str, Any]) -> Interface:
    told = pairs("\n".join(lines))
    speed = whole(told.get("speed"))
    state = told.get("state") or str(entry.get("operstate", "unknown")).lower()
    kind = _KINDS.get(told.get("type", ""), str(entry.get("link_type") or "other"))
    return Interface(
        name=name,
        mtu=whole(told.get("mtu")) or entry.get("mtu"),
        speed=speed if speed and speed > 0 else None,  # a virtual one says -1
        state=state,
        kind="ethernet" if kind == "ether" else kind,
        mac=told.get("mac") or entry.get("address"),
        addresses=tuple(f"{a['local']}/{a['prefixlen']}" for a in entry.get("addr_info", ()) if "local" in a),
    )


def _addresses(text: str) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(text) if text else []
    except ValueError:
        return {}
    return {str(e["ifname"]): e for e in found if isinstance(e, dict) and "ifname" in e}


def fabric(text: str) -> tuple[FabricPort, ...]:
    """From /sys/class/infiniband: `4: ACTIVE`, `400 Gb/sec (4X NDR)`."""
    found = []
    for name, lines in blocks(text, "port"):
        device, _, port = name.partition(" ")
        told = pairs("\n".join(lines))
        state = told.get("state", "unknown").rpartition(":")[2].strip().lower()
        rate = number(told.get("rate", "").partition(" ")[0])
        found.append(
            FabricPort(
                device=device, port=whole(port) or 0, state=state, rate=rate or None, layer=told.get("layer")
            )
        )
    return tuple(found)


def ibstat(text: str) -> tuple[FabricPort, ...]:
    """From `ibstat`, whatever it says around its ports (warnings of libibumad, a device that failed)."""
    found: list[FabricPort] = []
    device = ""
    for part in re.split(r"(?m)^(?=CA '|\s+Port \d+:)", text):
        named = re.match(r"CA '(.+?)'", part)
        if named:
            device = named[1]
        port = re.match(r"\s*Port (\d+):", part)
        if port and device:
            told = dict(re.findall(r"(?m)^\s+([A-Z][A-Za-z ]+): +(.+?)\s*$", part))
            found.append(
                FabricPort(
                    device=device,
                    port=int(port[1]),
                    state=told.get("State", "unknown").lower(),
                    rate=number(told.get("Rate")),
                    layer=told.get("Link layer"),
                )
            )
    return tuple(found)

"""The `restarts` and `watch` sections of a job: what follows a failure, a hang, a slow host."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from llmctl.controller.config.fields import HANG, Strict, Text


class RestartsSection(Strict):
    """What follows an attempt that failed: the next one, by itself, from the last committed checkpoint."""

    max: int | None = Field(
        None, ge=0, description="attempts after the first; else 3 for the recipe, 0 for your own script"
    )
    no_retry_on: list[int | Text] = Field(
        default_factory=list,
        description="exit codes, and texts in a rank's last lines, that end the run; 93 always does",
    )
    backoff_s: float = Field(
        5.0,
        ge=0,
        description="seconds of pause after the second failure in a row with no new checkpoint; then doubled",
    )
    min_nodes: int | None = Field(
        None, ge=1, description="go on with so many hosts when others are lost; else only with all of them"
    )
    wait_for_hosts_s: float = Field(600.0, ge=0, description="how long lost hosts are waited for")
    lease_s: float = Field(
        30.0,
        ge=15,
        description="with `min_nodes`: a host that hears no supervisor for so long ends its ranks",
    )


class WatchSection(Strict):
    """Ranks that hang, and hosts that are slow."""

    hang: Annotated[str, StringConstraints(pattern=HANG)] = Field(
        "auto",
        description="time without a step that is a hang: `90s`, `5m`, `1h`; off; auto: from the steps "
        "measured, at least 2 minutes",
    )
    policy: Literal["restart", "stop"] = Field(
        "restart", description="of a hang: the attempt ends and may be followed by another, or the run ends"
    )
    straggler: float = Field(
        1.3, gt=1, description="a host this many times slower than the others' median is named in `status`"
    )
    slow: Literal["warn", "exclude", "rebalance"] = Field(
        "warn",
        description="of such a host: named only; left out of the next attempt (with `min_nodes`); or given "
        "fewer samples of each batch from the next attempt on",
    )

"""An inference plan and a finished batch, for people."""

from __future__ import annotations

from collections.abc import Iterator

from llmctl.controller.plan.inference import summary
from llmctl.controller.plan.plan import Plan


def plan_lines(plan: Plan) -> Iterator[str]:
    """What `--dry-run` prints: the summary, where each replica's ranks go, and what each host starts."""
    spec = plan.nodes[0].infer
    if spec is None:
        return
    yield f"{plan.run_id}  {summary(spec)}"
    yield f"model     {spec.model}"
    if spec.batch:
        yield f"batch     {spec.batch.task} {spec.batch.input} -> {spec.batch.output}"
    if spec.serve:
        yield f"serve     {spec.serve.address}:{spec.serve.port or '(any free port)'} on {plan.nodes[0].host}"
    for replica in spec.replicas:
        places = ", ".join(f"{plan.nodes[place.node].host}:{place.slot}" for place in replica.ranks)
        yield f"replica {replica.index}  {places}"
    yield f"front     {plan.nodes[0].host}, hosts report to {plan.master_addr}:{plan.master_port}"
    for node in plan.nodes:
        command = " ".join((node.launch.python, *node.launch.command))
        yield f"{node.host}  {command}  (workdir {node.workdir})"

"""Runs once per GPU, started by torchrun: the built-in training recipe, and what your own scripts may use.

The public interface is what `__all__` names, imported from here; docs/own-model.md shows it at work. `report`
and `Plan` need no torch; the others import it when they are first asked for.

    from llmctl import worker

    def train(job):
        data = worker.TarSamples(job, decode)
        return worker.prepare(job, model=Net, loss=loss_sum, data=data, plan=worker.Plan()).train()

    if __name__ == "__main__":
        worker.main(train)
"""

from importlib import import_module
from typing import TYPE_CHECKING

from llmctl.worker.own.plan import Plan
from llmctl.worker.process import main
from llmctl.worker.reporting import report

if TYPE_CHECKING:
    from llmctl.worker.job import Job
    from llmctl.worker.own.data import TarSamples
    from llmctl.worker.own.run import Run, prepare

__all__ = ["Job", "Plan", "Run", "TarSamples", "main", "prepare", "report"]

_LATER = {
    "Job": "llmctl.worker.job",
    "Run": "llmctl.worker.own.run",
    "TarSamples": "llmctl.worker.own.data",
    "prepare": "llmctl.worker.own.run",
}
"""Public name -> the module that imports torch for it."""


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)

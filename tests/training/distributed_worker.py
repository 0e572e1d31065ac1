"""What each process of tests/training/test_distributed.py does: `torchrun … distributed_worker.py TASKS OUT`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tunesmith
from tunesmith.config.recipe import read_recipe
from tunesmith.errors import Paused
from tunesmith.training import distributed, fused_step
from tunesmith.training.engines import native


class Trouble:
    """Does something to this process's `step` number `at`."""

    def __init__(self, kind: type[fused_step.FusedStep], at: int, do: Any) -> None:
        self.patch, self.real, self.calls = pytest.MonkeyPatch(), kind.step, 0
        self.patch.setattr(kind, "step", lambda own, *given: self(own, at, do, *given))

    def __call__(self, own: Any, at: int, do: Any, *given: Any) -> Any:
        self.calls += 1
        if self.calls == at:
            do()
        return self.real(own, *given)

    def end(self) -> None:
        self.patch.undo()


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("as a full card says it")


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    found: dict[str, Any] = {}

    class Loop(native._Loop):
        def __init__(self, job: Any) -> None:
            super().__init__(job)
            codes = [p for p in job.model.network.parameters() if p.dtype in (torch.uint8, torch.float8_e4m3fn)]
            own = sum(p.to_local().nbytes if hasattr(p, "to_local") else p.nbytes for p in codes)
            now.update(codes=own, way=type(self.gradients).__module__, loop=self)

    pytest.MonkeyPatch().setattr(native, "_Loop", Loop)
    with distributed.process_group():
        for task in json.loads(Path(sys.argv[1]).read_text()):
            now: dict[str, Any] = {}
            recipe = read_recipe(task["recipe"])
            run = tunesmith.open_run(recipe, Path(task["runs"]))
            trouble = None
            if task.get("on") == distributed.rank():
                do = {"memory": out_of_memory, "stop": stop}[task["trouble"]]
                trouble = Trouble(fused_step.FusedStep, task["at"], do)
            try:
                tunesmith.train(recipe, run)
            except Paused as error:
                now["paused"] = str(error)
            if trouble:
                trouble.end()
            loop = now.pop("loop")
            now["micro_tokens"] = loop.progress.micro_tokens
            now["sum"] = sum(p.double().sum().item() for p in loop.parameters.values())
            found[task["name"]] = now
        Path(sys.argv[2], f"{distributed.rank()}.json").write_text(json.dumps(found))


main()

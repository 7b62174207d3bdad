"""A training run in a process of its own, to be killed, or to be one of several.

training_child.py kill BASE FOLDER "step 5" | "saving 6"
training_child.py ddp | fsdp BASE FOLDER SCOPE        (under torch.distributed.run)
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from recipes import recipe
from transformers import TrainerCallback

from gem_rag.training import trainer
from gem_rag.training.run import train


class SignalAt(TrainerCallback):
    """Sends a signal to its own process after a step."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


def killed(base: Path, folder: Path, moment: str) -> None:
    what, number = moment.split()
    callbacks = []
    if what == "step":
        callbacks.append(SignalAt(int(number), signal.SIGKILL))
    else:
        # Weights are written, the optimizer's state is not.
        whole = trainer.GemTrainer._save_optimizer_and_scheduler

        def half(self: Any, output_dir: str) -> None:
            if self.state.global_step == int(number):
                os.kill(os.getpid(), signal.SIGKILL)
            whole(self, output_dir)

        trainer.GemTrainer._save_optimizer_and_scheduler = half
    train(recipe(folder), base, folder / "out", report=False, callbacks=callbacks)


def shared(how: str, base: Path, folder: Path, scope: str) -> None:
    settings: dict[str, Any] = {"logging_steps": 1, "save_steps": 3}
    if how == "fsdp":
        shard_on_cpu()
        settings |= {
            "fsdp": True,
            "fsdp_config": {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"},
        }
    stop = how == "interrupted" and os.environ["RANK"] == "1"
    callbacks = [SignalAt(5, signal.SIGINT)] if stop else []
    plan = recipe(folder, scope=scope, trainer=settings)
    train(plan, base, folder / "out", report=False, callbacks=callbacks)


def shard_on_cpu() -> None:
    """accelerate shards for accelerators only: it is told that these processes have one."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    make = AcceleratorState.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if PartialState._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        make(self, *args, **kwargs)

    def check(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        assert self.accelerator.distributed_type == DistributedType.FSDP
        assert all(hasattr(p, "to_local") for p in model.parameters())  # sharded, really
        return loss(self, model, inputs, *args, **kwargs)

    loss = trainer.GemTrainer.compute_loss
    trainer.GemTrainer.compute_loss = check
    AcceleratorState.__init__ = init


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, base, folder, *rest = sys.argv[1:]
    if what == "kill":
        killed(Path(base), Path(folder), rest[0])
    else:
        shared(what, Path(base), Path(folder), rest[0])

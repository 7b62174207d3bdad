"""Training runs in processes of their own, to be killed, or to be several that share a run.

Each line of standard input is a job in JSON, `Job`; the answer to it is a line with the exit codes
of its processes. They are forked from this one, which has imported everything and started no
thread, so that a run does not wait for imports. Under torch.distributed.run, which starts fresh
processes, the arguments are those of one job: training_child.py HOW BASE FOLDER DETAIL.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any, TypedDict

import torch
from recipes import recipe
from transformers import TrainerCallback

from gem_rag.training import trainer
from gem_rag.training.run import train


class Job(TypedDict):
    """How to train, with what, and in how many processes; their standard error goes to `errors`."""

    arguments: list[str]
    processes: int
    errors: str


class SignalAt(TrainerCallback):
    """Sends a signal to its own process after a step."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


def train_until_killed(base: Path, folder: Path, moment: str) -> None:
    """Train until SIGKILL, at "step N" or while "saving N"."""
    event, number = moment.split()
    callbacks = []
    if event == "step":
        callbacks.append(SignalAt(int(number), signal.SIGKILL))
    else:
        # Weights are written, the optimizer's state is not.
        save = trainer.GemTrainer._save_optimizer_and_scheduler

        def save_or_die(self: Any, output_dir: str) -> None:
            if self.state.global_step == int(number):
                os.kill(os.getpid(), signal.SIGKILL)
            save(self, output_dir)

        trainer.GemTrainer._save_optimizer_and_scheduler = save_or_die
    train(recipe(folder), base, folder / "out", report=False, callbacks=callbacks)


def train_distributed(how: str, base: Path, folder: Path, scope: str) -> None:
    """Train as one of several processes: "ddp", "fsdp", or "interrupted" by a signal to one."""
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
    """Make accelerate, which shards on accelerators only, take these processes for some."""
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


def run(how: str, base: str, folder: str, detail: str) -> None:
    torch.set_num_threads(1)
    if how == "kill":
        train_until_killed(Path(base), Path(folder), detail)
    else:
        train_distributed(how, Path(base), Path(folder), detail)


def become_rank(rank: int, job: Job, port: int) -> None:
    """Make this process what torch.distributed.run would have started."""
    errors = os.open(job["errors"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(errors, sys.stdout.fileno())
    os.dup2(errors, sys.stderr.fileno())
    if job["processes"] > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(job["processes"]),
            "LOCAL_WORLD_SIZE": str(job["processes"]),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def serve_jobs() -> None:
    for name in ("peft", "torch.distributed.fsdp", "transformers.models.qwen3.modeling_qwen3"):
        importlib.import_module(name)  # what runs import when they need it
    gc.freeze()  # what is imported is no garbage
    for line in sys.stdin:
        job: Job = json.loads(line)
        assert len(os.listdir("/proc/self/task")) == 1, "a process with threads must not fork"
        port, children = free_port(), []
        for rank in range(job["processes"]):
            child = os.fork()
            if not child:
                become_rank(rank, job, port)
                run(*job["arguments"])
                return
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    run(*sys.argv[1:]) if sys.argv[1:] else serve_jobs()

"""GEM training on transformers' Trainer: steps, learning rates, logs, saving and stopping."""

from __future__ import annotations

import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from gem_rag._utils.progress import progress_bar
from gem_rag.errors import GemError
from gem_rag.training.batches import Batch, StepDataset, count_positions
from gem_rag.training.schedule import learning_rate_at
from gem_rag.training.scopes import trainable_state_dict
from gem_rag.training.training_model import TrainingModel

_SAVED = "saved"  # an empty file that marks a training checkpoint as complete
_PREFIX = f"{PREFIX_CHECKPOINT_DIR}-"
LOSSES = ("next_token", "contrastive", "distill", "teacher", "align", "spread")


class GemTrainer(Trainer):
    """A Trainer over a `StepDataset` that saves only the weights that train.

    Args:
        model: The training model.
        args: Trainer's settings.
        steps: The batch of each step.
        callbacks: Further callbacks.
        progress: Whether to show a progress bar.
    """

    def __init__(
        self,
        model: TrainingModel,
        args: TrainingArguments,
        steps: StepDataset,
        callbacks: Sequence[TrainerCallback] = (),
        progress: bool = False,
    ) -> None:
        self.steps = steps
        # Since the last log: sums of the losses' parts, how often each was added and work done.
        self._loss_sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = defaultdict(int)
        self._last_log = time.perf_counter()
        self.interruption = Interruption()
        self._bar = _ProgressBar(progress and args.should_log)
        super().__init__(model, args, data_collator=_take_only, train_dataset=steps)
        self.remove_callback(PrinterCallback)
        for callback in (*callbacks, self.interruption, self._bar, _LogLastStep()):
            self.add_callback(callback)
        self.model_accepts_loss_kwargs = False  # losses are means already

    def get_train_dataloader(self) -> DataLoader[Batch]:
        # A step's batch is already this process's share: accelerate must not split it again.
        return DataLoader(
            self.steps,
            batch_size=1,
            shuffle=False,
            collate_fn=_take_only,
            num_workers=self.args.dataloader_num_workers,
            worker_init_fn=_leave_interruption_to_trainer,
        )

    def create_scheduler(
        self, num_training_steps: int, optimizer: Any = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        recipe = self.steps.recipe
        peak = recipe.schedule.learning_rate
        self.lr_scheduler: Any = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer, lambda step: learning_rate_at(recipe, step) / peak
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        # Neither a temperature nor input embeddings should decay to zero.
        no_decay = ("logit_scale.s", "special.embeddings")
        return [n for n in super().get_decay_parameter_names(model) if not n.endswith(no_decay)]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        batch: Batch = inputs["batch"]
        parts = model(batch)
        loss = parts.pop("loss")
        if not torch.isfinite(loss):
            saved = latest_checkpoint(Path(self.args.output_dir))
            raise GemError(_describe_bad_loss(batch, float(loss.detach()), saved))
        for name, part in parts.items():
            total = self._loss_sums.get(name, torch.zeros_like(part))
            self._loss_sums[name] = total + part.detach()
            self._counts[name] += 1
        tokens, positions = count_positions(batch.passes)
        self._counts["tokens"] += tokens
        self._counts["positions"] += positions
        return (loss, parts) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # not in Trainer's summary at the end
            logs |= self._pop_logs()
        super().log(logs, start_time)

    def _pop_logs(self) -> dict[str, float]:
        """The losses' parts, the work done and the time it took, since the last log."""
        now = time.perf_counter()
        logs: dict[str, float] = {"seconds": now - self._last_log}
        for name in sorted(self._loss_sums):
            mean = self._loss_sums[name] / self._counts[name]
            logs[name] = float(self.accelerator.reduce(mean, reduction="mean"))
        work = torch.tensor([self._counts["tokens"], self._counts["positions"]])
        tokens, positions = self.accelerator.reduce(work.to(self.args.device)).tolist()
        logs |= {"tokens": tokens, "places": positions}
        logs["logit_scale"] = float(self.model.logit_scale().detach())
        self._loss_sums, self._counts, self._last_log = {}, defaultdict(int), now
        return logs

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._last_log = time.perf_counter()
        try:
            return super().train(*args, **kwargs)
        finally:
            self.interruption.restore()
            self._bar.close()

    # -- saving ----------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        trained = trainable_state_dict(self.model)
        if state_dict is not None:
            trained = {name: tensor for name, tensor in state_dict.items() if name in trained}
        super()._save(output_dir, trained)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir, f"{_PREFIX}{self.state.global_step}")
        try:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                (folder / _SAVED).touch()
        except (OSError, RuntimeError, SafetensorError) as error:  # writers raise any of them
            shutil.rmtree(folder, ignore_errors=True)
            raise GemError(
                f"step {self.state.global_step} could not be saved ({error}): make room, then go "
                f"on with --resume from {latest_checkpoint(folder.parent) or 'the beginning'}"
            ) from error
        if self.args.should_save and self.steps.recipe.schedule.average > 1:
            self._remove_states_out_of_turn()

    def _remove_states_out_of_turn(self) -> None:
        """Remove what interruptions saved before the last state, so that a resumed run averages the
        states of an uninterrupted one."""
        if self.args.save_strategy != SaveStrategy.STEPS:
            return
        for folder in complete_checkpoints(Path(self.args.output_dir))[:-1]:
            if int(folder.name.removeprefix(_PREFIX)) % self.state.save_steps:
                shutil.rmtree(folder)


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete training checkpoints of a run, in order."""
    complete = [path.parent for path in folder.glob(f"{_PREFIX}*/{_SAVED}")]
    return sorted(complete, key=lambda path: int(path.name.removeprefix(_PREFIX)))


def latest_checkpoint(folder: Path) -> Path | None:
    """The last complete training checkpoint of a run, if there is one."""
    return next(reversed(complete_checkpoints(folder)), None)


def _leave_interruption_to_trainer(worker: int) -> None:
    """Ctrl-C reaches the workers too, and the Trainer wants its next batch still."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _take_only(items: list[Batch]) -> dict[str, Batch]:
    (batch,) = items
    return {"batch": batch}


def _describe_bad_loss(batch: Batch, loss: float, saved: Path | None) -> str:
    shown = ", ".join(batch.row_names[:40])
    more = f" and {len(batch.row_names) - 40} more" if len(batch.row_names) > 40 else ""
    return (
        f"the loss is {loss} at step {batch.step}, on rows {shown}{more}: look at these rows, or "
        f"lower schedule.learning_rate; the last saved state is {saved or 'none'}"
    )


class Interruption(TrainerCallback):
    """On SIGINT or SIGTERM, saves and ends the run after the current step; on a second, at once.

    Attributes:
        signal: The signal that was received, or None.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        try:
            self._before = {s: signal.signal(s, self._handle) for s in self._SIGNALS}
        except ValueError:  # only a main thread may handle signals
            self._before = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._any_process_interrupted():
            control.should_save = control.should_log = control.should_training_stop = True

    def restore(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.restore()

    def _any_process_interrupted(self) -> bool:
        """Whether any process was interrupted; all must stop after the same step."""
        if not dist.is_initialized():
            return self.signal is not None
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        flag = torch.tensor([self.signal or 0], device=device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        self.signal = int(flag) or None
        return self.signal is not None


class _LogLastStep(TrainerCallback):
    """Logs the last step even if it is not on the logging interval."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True


class _ProgressBar(TrainerCallback):
    """A progress bar with the last losses."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._stack = ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        bar = progress_bar("training", state.max_steps, self._shown)
        self._advance = self._stack.enter_context(bar)
        self._advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._advance(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        names = (*LOSSES, "learning_rate")
        losses = (f"{n.replace('_', ' ')} {logs[n]:.3g}" for n in names if n in logs)
        if "loss" in (logs or {}):
            self._advance(0, "training: " + ", ".join(losses))

    def close(self) -> None:
        """Leave the bar as it is."""
        self._stack.close()

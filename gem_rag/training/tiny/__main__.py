"""Makes gem-tiny's special tokens: `python -m gem_rag.training.tiny --base FOLDER --out FOLDER`.

The base language model stays as it is. Its special tokens' rows and adapters are trained by
contrast on docstrings, whose summary line must find the rest.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    TrainerCallback,
    TrainingArguments,
)

from gem_rag.checkpoint import save_special
from gem_rag.config import GemConfig
from gem_rag.evaluation.retrieval import known_item
from gem_rag.tokens import TextEncoder
from gem_rag.training.data import PairDataset, collate_pairs
from gem_rag.training.scopes import special
from gem_rag.training.tiny.corpus import Pair, held_out, pairs, read_corpus, training_texts
from gem_rag.training.trainer import ContrastiveModel, GemTrainer

# The forms that the base was trained on.
CHAT_TEMPLATE = """\
{% for message in messages -%}
{% if message.role == "system" %}Context:
{{ message.content }}

{% elif message.role == "user" %}Question: {{ message.content }}
Answer:{% else %} {{ message.content }}

{% endif %}{% endfor %}"""
ANSWER_PROMPT = "Context:\n{passages}\n\nQuestion: {question}\nAnswer:"
QUERY_TOKENS, DOCUMENT_TOKENS = 64, 128
CONTEXT = 256  # the base was trained on sequences of this length, and knows no position beyond


class HeldOutRetrieval(TrainerCallback):
    """Prints retrieval on held-out pairs at every save."""

    def __init__(self, dataset: PairDataset) -> None:
        self.rows = [dataset[i] for i in range(len(dataset))]

    def on_save(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
        with torch.no_grad(), torch.autocast(model.encoder.device.type, torch.bfloat16):
            queries = model.embed([q for q, _ in self.rows]).float().cpu()
            documents = model.embed([d for _, d in self.rows]).float().cpu()
        figures = known_item((queries @ documents.T).numpy(), range(len(queries)))
        scale = float(model.logit_scale().detach())
        print(
            "\n"
            + json.dumps({"step": state.global_step, "scale": round(scale, 2), **asdict(figures)})
        )


def main(
    base: Annotated[Path, typer.Option(help="the language model to start from")],
    out: Annotated[Path, typer.Option(help="where the checkpoint goes")],
    packages: Annotated[Path | None, typer.Option(help="a folder of installed packages")] = None,
    work: Annotated[Path, typer.Option(help="pairs and training state")] = Path("build/gem-tiny"),
    k: int = 1,
    rank: int = 64,
    steps: int = 600,
    batch: int = 256,
    rate: float = 1e-3,
    save_every: int = 100,
    seed: int = 0,
) -> None:
    """Train, save the training state every few minutes, resume where it stopped."""
    corpus = cached_pairs(work / "pairs.jsonl", packages)
    tokenizer = AutoTokenizer.from_pretrained(base)
    encoder = TextEncoder(tokenizer)
    texts = list(training_texts(corpus))
    kept = [(p.summary, p.rest) for p in corpus if held_out(p.module)][:1500]
    train = PairDataset(texts, encoder, QUERY_TOKENS, DOCUMENT_TOKENS)
    print(f"{len(train)} pairs to train on, {len(kept)} held out")

    torch.manual_seed(seed)
    name, base = base.name, prepared(base, work / "base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    gem = special(model, k, rank=rank)
    trainer = GemTrainer(
        ContrastiveModel(gem),
        TrainingArguments(
            output_dir=str(work / "state"),
            max_steps=steps,
            per_device_train_batch_size=batch,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=min(100, steps // 10),
            weight_decay=0.01,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=50,
            save_steps=save_every,
            save_total_limit=2,
            remove_unused_columns=False,
            dataloader_drop_last=True,
            report_to="none",
            seed=seed,
        ),
        data_collator=collate_pairs,
        train_dataset=train,
        callbacks=[HeldOutRetrieval(PairDataset(kept, encoder, QUERY_TOKENS, DOCUMENT_TOKENS))],
    )
    resumable = (work / "state").is_dir() and any((work / "state").glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=resumable or None)

    config = GemConfig(
        k=k,
        scope="special",
        answer_prompt=ANSWER_PROMPT,
        answer_style="quote",
        max_length=DOCUMENT_TOKENS,
        adapter=gem.adapter,
        base_model=name,
    )
    gem.special.to(torch.bfloat16)
    save_special(out, base, config, gem.special.tensors())
    print(f"saved {out}")


def prepared(base: Path, copy: Path) -> Path:
    """A copy of the base that says how long a text it can read, and how to chat with it."""
    shutil.copytree(base, copy, dirs_exist_ok=True, copy_function=shutil.copyfile)
    file = copy / "config.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**state, "max_position_embeddings": CONTEXT}, indent=2) + "\n")
    (copy / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return copy


def cached_pairs(file: Path, packages: Path | None) -> list[Pair]:
    """The corpus's pairs, read once and kept, since parsing every module takes a minute."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        found = pairs(read_corpus([packages] if packages else []))
        part = file.with_suffix(".part")
        part.write_text("".join(json.dumps(asdict(p)) + "\n" for p in found), encoding="utf-8")
        part.rename(file)
    return [Pair(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    typer.run(main)

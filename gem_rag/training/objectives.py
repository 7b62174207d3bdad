"""Losses of GEM training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gem_rag.training.rows import IGNORED


class LogitScale(nn.Module):
    """Learnable factor on cosine similarities: exp(s), the reciprocal of a temperature.

    Paper section 4: s starts at log 20 and is kept in [0, log 100].

    Args:
        initial: The factor at the beginning.
        largest: The factor is kept from 1 to this.
    """

    def __init__(self, initial: float = 20.0, largest: float = 100.0) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.tensor([math.log(initial)]))  # sharding takes no scalars
        self.limit = math.log(largest)

    def forward(self) -> Tensor:
        # Clamped in place and not in the graph, so that s cannot get stuck beyond the limit.
        with torch.no_grad():
            self.s.clamp_(0.0, self.limit)
        return self.s.exp()[0]


def info_nce(
    queries: Tensor,
    documents: Tensor,
    scale: Tensor,
    positive: Tensor | None = None,
    false_negatives: Tensor | None = None,
    *,
    margin: float | None = None,
    hardness: float = 0.0,
    both_ways: bool = False,
) -> Tensor:
    """Contrastive loss with the batch's other documents as negatives (paper section 4).

    Args:
        queries: Unit vectors [n, dim].
        documents: Unit vectors [m, dim].
        scale: Factor on cosine similarities.
        positive: Column of each query's document, int64 [n]; default document i for query i.
        false_negatives: Documents that do not count as negatives of a query, bool [n, m]; default
            none.
        margin: A negative whose cosine exceeds the positive's by more than this does not count
            either (Qwen3-Embedding, arXiv 2506.05176); None counts all.
        hardness: Negatives weigh exp(hardness * cosine), their mean being 1 (arXiv 2010.04592).
        both_ways: Whether a document must find its query among the batch's too; the loss is then
            the mean of both.

    Returns:
        A scalar, in nats.
    """
    logits = scale * queries @ documents.T
    cosines = queries.detach() @ documents.detach().T
    own = torch.arange(len(queries), device=logits.device)
    if positive is None:
        positive = own
    if false_negatives is None:
        false_negatives = torch.zeros_like(logits, dtype=torch.bool)
    loss = _choice_loss(logits, cosines, positive, false_negatives, margin, hardness)
    if not both_ways:
        return loss
    logits, cosines, ignored = (m[:, positive].T for m in (logits, cosines, false_negatives))
    return (loss + _choice_loss(logits, cosines, own, ignored, margin, hardness)) / 2


def _choice_loss(
    logits: Tensor,
    cosines: Tensor,
    positive: Tensor,
    ignored: Tensor,
    margin: float | None,
    hardness: float,
) -> Tensor:
    """Cross entropy of choosing each row's positive column: see `info_nce`.

    Cosines, without a gradient, decide which negatives count and how much.
    """
    if margin is not None:
        ignored = ignored | (cosines > cosines.gather(1, positive[:, None]) + margin)
    if hardness:
        negative = (~ignored).scatter(1, positive[:, None], False)
        log_weight = (hardness * cosines).masked_fill(~negative, -torch.inf)
        log_mean = log_weight.logsumexp(1) - negative.sum(1).clamp(min=1).log()
        logits = logits + (log_weight - log_mean[:, None]).where(negative, 0.0)
    return F.cross_entropy(logits.masked_fill(ignored, -torch.inf), positive)


def spread_out_loss(
    queries: Tensor, documents: Tensor, positive: Tensor, false_negatives: Tensor | None = None
) -> Tensor:
    """How far vectors that do not belong together are from spread out (GOR, arXiv 1708.06320).

    Unit vectors that point anywhere have cosines of mean 0 and mean square 1 / dim.

    Args:
        queries: As for `info_nce`; the others likewise.

    Returns:
        A scalar: mean^2 + max(0, mean square - 1 / dim).
    """
    cosines = queries @ documents.T
    apart = torch.ones_like(cosines, dtype=torch.bool).scatter(1, positive[:, None], False)
    if false_negatives is not None:
        apart = apart & ~false_negatives
    found = cosines[apart]
    if not len(found):
        return cosines.sum() * 0
    return found.mean() ** 2 + (found.square().mean() - 1 / queries.shape[1]).clamp(min=0)


def alignment_loss(vectors: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine of each vector and a teacher's, on average.

    Args:
        vectors: Of the model, projected to the teacher's dimension: [n, dim].
        teacher: [n, dim].

    Returns:
        A scalar from 0 to 2.
    """
    return 1 - F.cosine_similarity(vectors, teacher, dim=-1).mean()


def matryoshka(
    loss: Callable[[Tensor, Tensor], Tensor],
    queries: Tensor,
    documents: Tensor,
    dims: Sequence[int],
) -> Tensor:
    """Mean of a loss over full vectors and shortened ones (arXiv 2205.13147).

    Args:
        loss: Of unit vectors of queries and documents.
        queries: Unit vectors [n, dim].
        documents: Unit vectors [m, dim].
        dims: Lengths to shorten to; shortened vectors are normalized again.

    Returns:
        A scalar.
    """
    losses = [loss(queries, documents)]
    for dim in dims:
        shortened = (F.normalize(vectors[:, :dim], dim=-1) for vectors in (queries, documents))
        losses.append(loss(*shortened))
    return torch.stack(losses).mean()


def teacher_loss(
    queries: Tensor, documents: Tensor, teacher: tuple[Tensor, Tensor], scale: Tensor
) -> Tensor:
    """KL divergence from a teacher's similarities within a batch to the model's.

    Args:
        queries: Unit vectors [n, dim].
        documents: Unit vectors [n, dim]; document i belongs to query i.
        teacher: The teacher's vectors of the same texts, of any dimension: only similarities are
            learned.
        scale: Factor on cosine similarities.

    Returns:
        A scalar, in nats.
    """
    target = F.normalize(teacher[0], dim=-1) @ F.normalize(teacher[1], dim=-1).T
    scale = scale.detach()  # or a scale of 0 would make both distributions equal
    return F.kl_div(
        (scale * queries @ documents.T).log_softmax(-1),
        (scale * target).log_softmax(-1),
        reduction="batchmean",
        log_target=True,
    )


def next_token_loss(
    hidden: Tensor, head: nn.Module, labels: Tensor, reduction: str = "mean"
) -> Tensor:
    """Language-modeling loss.

    Args:
        hidden: Last-layer outputs [B, T, hidden].
        head: The model's language-modeling head.
        labels: What each position predicts, int64 [B, T]; -100 for nothing (see
            `rows.next_token_labels`).
        reduction: "mean" or "sum" over predicted tokens.

    Returns:
        A scalar, in nats.
    """
    predicts = labels != IGNORED
    # Only positions that predict go through the head: its output is the largest tensor there is.
    return F.cross_entropy(head(hidden[predicts]).float(), labels[predicts], reduction=reduction)


def distillation_loss(logits: Tensor, base_logits: Tensor) -> Tensor:
    """Sum over positions of the KL divergence from a base's predictions to the model's, in nats.

    Args:
        logits: [positions, vocabulary].
        base_logits: [positions, vocabulary].
    """
    return F.kl_div(
        logits.float().log_softmax(-1),
        base_logits.float().log_softmax(-1),
        reduction="sum",
        log_target=True,
    )

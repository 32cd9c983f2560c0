"""Vector quantiser: each vector becomes the id of the nearest codebook row.

The codebook is not learned by gradient but follows the mean of the vectors that chose each row (van den
Oord et al. 2017, appendix A.1); rows nobody chooses move to where vectors are.

Legend: n vectors of dim values, size = codebook rows.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from echat.config import Config

KMEANS_ROUNDS = 8
POOL_PER_CODE = 8  # vectors kept per codebook row for the first k-means


class QuantizerConfig(Config):
    """Size of the codebook and how it follows the data."""

    size: int = Field(1024, gt=1, description="codebook rows: speech ids are 0 .. size - 1")
    dim: int = Field(64, gt=0, description="width of a codebook row")
    decay: float = Field(0.98, gt=0, lt=1, description="decay of the moving averages")
    warmup_steps: int = Field(500, ge=1, description="training steps without quantisation, then k-means")
    dead_below: float = Field(0.3, ge=0, description="a row chosen less often (moving count per step) moves")
    commitment_weight: float = Field(0.25, ge=0, description="how strongly vectors stay near their row")


class Quantizer(nn.Module):
    """Nearest row by Euclidean distance of the normalised vector; gradients pass straight through."""

    codebook: Tensor
    counts: Tensor
    sums: Tensor
    pool: Tensor
    steps: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("codebook", F.normalize(torch.randn(config.size, config.dim), dim=1))
        self.register_buffer("counts", torch.ones(config.size))
        self.register_buffer("sums", self.codebook.clone())
        self.register_buffer("pool", torch.zeros(config.size * POOL_PER_CODE, config.dim))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))  # training steps seen

    def ids(self, x: Tensor) -> Tensor:
        """`(..., dim) -> (...)` ids of the nearest rows."""
        return self._nearest(F.normalize(x.float(), dim=-1))

    def vectors(self, ids: Tensor) -> Tensor:
        """Codebook rows of ids, `(..., dim)`."""
        return self.codebook[ids]

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantised vectors `(batch, n, dim)`, ids `(batch, n)`, commitment loss per row `(batch,)`.

        `mask (batch, n)` True = valid. In training mode the codebook follows; until the end of the warm-up
        vectors pass unquantised.
        """
        x = F.normalize(x.float(), dim=-1)
        ids = self._nearest(x.detach())
        if self.training:
            self._update_codebook(x.detach()[mask], ids[mask])
            if self.steps <= self.config.warmup_steps:
                return x, ids, x.new_zeros(x.shape[0])
        rows = self.codebook[ids]
        distance = (x - rows).square().sum(-1) * mask
        return x + (rows - x).detach(), ids, distance.sum(1) / mask.sum(1)

    def _nearest(self, x: Tensor) -> Tensor:
        """With |x| = 1 for all, `|x - c|^2` is smallest where `|c|^2 - 2 x c` is."""
        return (self.codebook.square().sum(1) - 2 * x @ self.codebook.T).argmin(-1)

    @torch.no_grad()
    def _update_codebook(self, x: Tensor, ids: Tensor) -> None:
        self.steps += 1
        if self.steps <= self.config.warmup_steps:
            self.pool.copy_(torch.cat([x, self.pool])[: len(self.pool)])
            if self.steps == self.config.warmup_steps:
                self._init_by_kmeans()
            return
        decay = self.config.decay
        self.counts.mul_(decay).index_add_(0, ids, x.new_full((len(ids),), 1 - decay))
        self.sums.mul_(decay).index_add_(0, ids, x * (1 - decay))
        dead = self.counts < self.config.dead_below * len(ids) / self.config.size
        if dead.any():
            somewhere = x[torch.randint(len(x), (int(dead.sum()),), device=x.device)]
            usual = len(ids) / self.config.size
            self.counts[dead] = usual
            self.sums[dead] = somewhere * usual
        self.codebook.copy_(self.sums / self.counts[:, None])

    def _init_by_kmeans(self) -> None:
        """k-means on the pool of recent vectors."""
        pool = self.pool[self.pool.square().sum(1) > 0]
        picks = torch.randint(len(pool), (self.config.size,), device=pool.device)
        if len(pool) >= self.config.size:
            picks = torch.randperm(len(pool), device=pool.device)[: self.config.size]
        self.codebook.copy_(pool[picks])
        for _ in range(KMEANS_ROUNDS):
            ids = self._nearest(pool)
            counts = torch.bincount(ids, minlength=self.config.size).float()
            sums = torch.zeros_like(self.codebook).index_add_(0, ids, pool)
            used = counts > 0
            self.codebook[used] = sums[used] / counts[used, None]
        self.counts.fill_(1.0)
        self.sums.copy_(self.codebook)

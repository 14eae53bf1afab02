"""CLIP's vision transformer, with one product for queries, keys and values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

_FUSED = ("q_proj", "k_proj", "v_proj")


class ClipTower(nn.Module):
    """The patch embedding and the first ``depth`` blocks (Radford et al., arXiv:2103.00020), with random weights.

    Nothing but the patch convolution is built for a depth of 0. The final norm never is: it reads the CLS token alone.
    """

    def __init__(self, config: PreTrainedConfig, depth: int, *, compiled: bool = False) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv2d(3, width, patch, patch, bias=False)
        if depth:
            self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
            self.position_embedding = nn.Embedding((config.image_size // patch) ** 2 + 1, width)
            # Far below the patches, as CLIP starts: torch's deviation of 1 would drown the picture.
            nn.init.normal_(self.position_embedding.weight, std=0.02)
            self.pre_layrnorm = nn.LayerNorm(width, config.layer_norm_eps)
        self.layers = nn.ModuleList(ClipBlock(config) for _ in range(depth))
        self._layer = torch.compile(_layer) if compiled else _layer

    def run(self, images: Tensor, blocks: Collection[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """Run up to the last of ``blocks``.

        Args:
            images: [B, 3, H, W], of the config's size.
            blocks: whose outputs to keep.

        Returns:
            The patch convolution's output, without positions, and the residual stream behind each block of
            ``blocks``, without the CLS token: [B, cells, D].
        """
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)
        kept: dict[int, Tensor] = {}
        if blocks:
            tokens = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], 1)
            tokens = self.pre_layrnorm(tokens + self.position_embedding.weight)
            for index, layer in enumerate(self.layers[: max(blocks) + 1]):
                tokens = self._layer(layer, tokens)
                if index in blocks:
                    kept[index] = tokens[:, 1:]
        return patches, kept


class ClipBlock(nn.Module):
    """One pre-norm block: attention over all tokens, then an MLP, each added to the residual stream."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        width, hidden = config.hidden_size, config.intermediate_size
        self.heads = config.num_attention_heads
        self.layer_norm1 = nn.LayerNorm(width, config.layer_norm_eps)
        self.qkv_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        self.layer_norm2 = nn.LayerNorm(width, config.layer_norm_eps)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the residual stream [B, S, D] behind the block."""
        projected = self.qkv_proj(self.layer_norm1(tokens)).unflatten(2, (3, self.heads, -1))
        attended = F.scaled_dot_product_attention(*projected.permute(2, 0, 3, 1, 4))
        tokens = tokens + self.out_proj(attended.transpose(1, 2).flatten(2))
        hidden: Tensor = self.fc1(self.layer_norm2(tokens))
        # CLIP's quick GELU, which is neither of torch's two.
        return tokens.add(self.fc2(hidden * torch.sigmoid(1.702 * hidden)))


def fused(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield the entries of a :class:`ClipTower` from those of a checkpoint in transformers' layout."""
    waiting: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors:
        name = name.removeprefix("embeddings.").removeprefix("encoder.")
        name = name.replace(".self_attn.", ".").replace(".mlp.", ".")
        layer, _, rest = name.rpartition(".")
        layer, _, projection = layer.rpartition(".")
        if projection not in _FUSED:
            yield name, tensor
            continue
        key = f"{layer}.qkv_proj.{rest}"
        found = waiting.setdefault(key, {})
        found[projection] = tensor
        if len(found) == len(_FUSED):
            yield key, torch.cat([waiting[key].pop(part) for part in _FUSED])


def _layer(layer: nn.Module, tokens: Tensor) -> Tensor:
    output: Tensor = layer(tokens)
    return output

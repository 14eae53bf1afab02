"""The language model behind a vision tower: its layers as taps on the image tokens."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedConfig

from foresight_bench.checkpoints import fill


class LanguageModel:
    """The decoder layers of a language model, from the embeddings to the deepest tap, without a head.

    Attention is causal, so a token's state does not depend on what follows it: the input ends with the last
    image token, and the states of the image tokens are those of any longer prompt.

    Args:
        config: the text model's own (``text_config`` of a vision-language model).
        depth: how many layers to build and run.
        final: whether the final norm is needed.
        tensors: name and tensor of exactly these layers, ``embed_tokens`` and, if ``final``, ``norm``; on the
            device and in the precision to run in. None for random weights.
        device: where to build random weights, and the rotary tables.
        dtype: precision of random weights.
        compiled: whether to compile a layer (all share the one graph).
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        depth: int,
        *,
        final: bool,
        tensors: Iterable[tuple[str, Tensor]] | None,
        device: str,
        dtype: torch.dtype,
        compiled: bool = False,
    ) -> None:
        config = copy.deepcopy(config)
        config.num_hidden_layers = depth
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:depth]
        config._attn_implementation = "sdpa"
        with torch.device("meta" if tensors is not None else device):
            model: Any = AutoModel.from_config(config, dtype=dtype)
        if not final:
            model.norm = torch.nn.Identity()
        # The angles reach thousands of radians: tables in bfloat16 would be off by up to 2.4 of them. Built anew
        # on the device, because no checkpoint holds them.
        model.rotary_emb = type(model.rotary_emb)(config=config).to(device)
        if tensors is not None:
            fill(model, tensors, f"the first {depth} layers of {type(model).__name__}")
        self.model = model.eval().requires_grad_(False)
        self.depth = depth
        self._layer = torch.compile(_layer) if compiled else _layer

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Return the embeddings of a prompt [S, D]."""
        table: Tensor = self.model.embed_tokens.weight
        return table[torch.tensor(ids, device=table.device)]

    def run(self, inputs: Tensor, positions: Tensor, layers: Sequence[int]) -> tuple[dict[int, Tensor], Tensor]:
        """Run all layers.

        Args:
            inputs: [B, S, D] embeddings.
            positions: [B, S], or [3, B, S] for a model with multimodal rotary positions.
            layers: whose outputs to keep.

        Returns:
            The residual stream [B, S, D] behind each layer of ``layers``, and the last one after the final norm.
        """
        tables = self.model.rotary_emb(inputs, positions)
        states, kept = inputs, {}
        for index, layer in enumerate(self.model.layers):
            states = self._layer(layer, states, tables)
            if index in layers:
                kept[index] = states
        return kept, self.model.norm(states)


def _layer(layer: Any, states: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    output: Tensor = layer(states, attention_mask=None, position_embeddings=tables)
    return output

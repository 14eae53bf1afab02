"""The built-in plugins. They come in through the entry point in setup.cfg, like anyone's."""

from __future__ import annotations

from collections.abc import Sequence

from foresight_bench import hookimpl
from foresight_bench.specs import AdapterSpec, DecoderSpec, EncoderSpec, MetricSpec
from foresight_plugins.adapter_specs import ADAPTERS
from foresight_plugins.decoders.autoencoder_spec import AUTOENCODERS
from foresight_plugins.encoders.dinov2_spec import DINOV2
from foresight_plugins.encoders.internvl2_spec import INTERNVL2
from foresight_plugins.encoders.llava_next_spec import LLAVA_NEXT
from foresight_plugins.encoders.qwen2_5_vl_spec import QWEN2_5_VL
from foresight_plugins.encoders.sam_spec import SAM
from foresight_plugins.metric_specs import METRICS


@hookimpl
def foresight_encoders() -> Sequence[EncoderSpec]:
    """Return the frozen encoders."""
    return (DINOV2, QWEN2_5_VL, INTERNVL2, LLAVA_NEXT, SAM)


@hookimpl
def foresight_adapters() -> Sequence[AdapterSpec]:
    """Return the trained maps."""
    return ADAPTERS


@hookimpl
def foresight_decoders() -> Sequence[DecoderSpec]:
    """Return the video decoders."""
    return (
        DecoderSpec(
            name="patch-pca",
            target="foresight_plugins.decoders.patch_pca:PatchPCA",
            description="linear patch codec fitted on the train split: the leading principal components of each patch",
            # 14 pixels, the grid of the controls: what `pixels` scores is then the adapter's doing, not resampling's.
            params={"patch": 14, "components": 96},
            surrogate="a linear codec of patches, no video decoder",
        ),
        *AUTOENCODERS,
    )


@hookimpl
def foresight_metrics() -> Sequence[MetricSpec]:
    """Return the metrics."""
    return METRICS

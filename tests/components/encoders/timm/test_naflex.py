"""A NaFlexViT encodes images of several sizes packed as timm encodes them in one padded batch."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vilavt_components.encoders.timm.encoder import TimmConfig, TimmEncoder
from vilavt_toolkit.contracts import Crop
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder

SMALL = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0, "init_values": 0.5}


def padded_batch(encoder, views):
    """Patches [n, L, p p 3], places [n, L, 2] and validity [n, L], as timm's loader of any resolution makes them."""
    longest = max(view.size[0] * view.size[1] for view in views)
    patches, places, valid = [], [], []
    for view in views:
        images = encoder.normalise_pixels(view.data.unsqueeze(0), next(encoder.model.parameters()))
        rows, columns = view.size
        cut = images.view(3, rows, 8, columns, 8).permute(1, 3, 2, 4, 0).reshape(rows * columns, -1)
        place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        missing = longest - len(cut)
        patches.append(F.pad(cut, (0, 0, 0, missing)))
        places.append(F.pad(place, (0, 0, 0, missing)))
        valid.append(torch.arange(longest) < len(cut))
    return torch.stack(patches), torch.stack(places), torch.stack(valid)


@pytest.mark.parametrize(
    "args",
    [
        {"pos_embed_grid_size": (3, 3)},
        {"pos_embed": "factorized", "reg_tokens": 1},
        {"pos_embed": "none", "rope_type": "axial", "class_token": True},
    ],
)
@torch.no_grad()
def test_regions_of_any_size_equal_timms_own_padded_batch(args):
    torch.manual_seed(0)
    config = TimmConfig(
        model="naflexvit_base_patch16_siglip", args=SMALL | args, overview_pixels=4096, zoom_pixels=4096
    )
    encoder = TimmEncoder(config).eval()
    rng = np.random.default_rng(0)
    crops = [Crop(rng.integers(0, 256, (*size, 3), np.uint8), "image", False) for size in ((24, 40), (16, 16), (40, 8))]
    views = [encoder.prepare(crop) for crop in crops]
    assert len({view.size for view in views}) == 3
    features, _ = DynamicEncoder(encoder).encode(views, range(3), [[]] * 3)
    patches, places, valid = padded_batch(encoder, views)
    found = encoder.model.forward_features(patches, patch_coord=places, patch_valid=valid)
    x = (found["patches"] if isinstance(found, dict) else found)[:, encoder.prefix_tokens :]
    expected = encoder.model.fc_norm(x)[valid]
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)

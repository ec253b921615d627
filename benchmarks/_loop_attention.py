"""The peer: modulated attention built segment by segment, as the paper's code does; written for this comparison.

Every segment is cut out by numbers read back from the device, its inquiry is found by a mask, its keys are put
together, attended over by themselves, and the results are joined: two waits and several small kernels per segment.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def loop_attention(
    q: Tensor, k: Tensor, v: Tensor, ends: Tensor, words_k: Tensor, words_v: Tensor, group_of_word: Tensor
) -> Tensor:
    """q, k, v [S, H, d] in segments that end at `ends` [N + 1] on the device; words [T, H, d] of group_of_word [T]."""
    outputs = []
    for segment in range(len(ends) - 1):
        start, end = int(ends[segment].item()), int(ends[segment + 1].item())
        mine = group_of_word == segment
        keys = torch.cat([k[start:end], words_k[mine]]).transpose(0, 1).unsqueeze(0)
        values = torch.cat([v[start:end], words_v[mine]]).transpose(0, 1).unsqueeze(0)
        queries = q[start:end].transpose(0, 1).unsqueeze(0)
        outputs.append(F.scaled_dot_product_attention(queries, keys, values)[0].transpose(0, 1))
    return torch.cat(outputs)

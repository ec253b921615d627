"""The peer of packed attention: modulated attention segment by segment, as in the paper's code.

It was written for this comparison. Every segment is cut out by numbers that are read back from the device, its
inquiry is selected by a mask, and its attention is a call of its own: two waits and several small kernels a segment.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def loop_attention(
    q: Tensor, k: Tensor, v: Tensor, ends: Tensor, words_k: Tensor, words_v: Tensor, group_of_word: Tensor
) -> Tensor:
    """Attend over q, k, v [S, H, d] in segments that end at `ends` [N + 1], and over the words [T, H, d] of each group.

    `group_of_word` [T] says which segment a word belongs to. All tensors are on the device.
    """
    outputs = []
    for segment in range(len(ends) - 1):
        start, end = int(ends[segment].item()), int(ends[segment + 1].item())
        mine = group_of_word == segment
        keys = torch.cat([k[start:end], words_k[mine]]).transpose(0, 1).unsqueeze(0)
        values = torch.cat([v[start:end], words_v[mine]]).transpose(0, 1).unsqueeze(0)
        queries = q[start:end].transpose(0, 1).unsqueeze(0)
        outputs.append(F.scaled_dot_product_attention(queries, keys, values)[0].transpose(0, 1))
    return torch.cat(outputs)

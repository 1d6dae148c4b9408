"""A linear layer on `wna16`: what `QLinear(backend='triton')` computes with."""
import math
import torch
from torch import Tensor, nn
from quantlab.kernels import wna16 as W
from quantlab.kernels._launch import require

GRIDS = 'formats.int.affine_rows', 'formats.int.centred_rows' # code less zero times scale, group by group

def _affine(q): # codes [o,i], scale [o,groups], zero or None, bits
    if q.fmt not in GRIDS or q.width.get('codes') not in W.BK:
        raise ValueError(f"backend='triton' multiplies with integer grids of {', '.join(map(str,W.BK))} bits; this "
                         f"weight has format {q.fmt}, {q.width.get('codes')} bits: use backend='dense' or 'ref'")
    (o, i), bits = q.shape, q.width['codes']
    s, z = q.parts['scale'], q.parts.get('zero')
    if z is not None and not torch.equal(z.float().round().clamp(0,255).to(z.dtype), z):
        raise ValueError("backend='triton' needs whole zero points from 0 to 255: use backend='dense' or 'ref'")
    if s.numel()<o: s, z = s.reshape(-1).expand(o), None if z is None else z.reshape(-1).expand(o)
    if z is None and q.meta['mid']!=2**(bits-1): z = torch.full_like(s, q.meta['mid'])
    return q.parts['codes'].reshape(o,i).to(torch.uint8), s.reshape(o,-1), None if z is None else z.reshape(o,-1), bits

class Fused(nn.Module):
    "x times the transposed coded weight, in float16 or bfloat16; float32 inputs are rounded to float16"
    def __init__(self, codes, scale, zero, bits):
        nn.Module.__init__(self)
        self.bits, self.group = bits, codes.shape[1]//scale.shape[1]
        W._check(codes, codes, scale.T, None if zero is None else zero.T, bits, self.group)
        def keep(name, t): self.register_buffer(name, t, persistent=False)
        keep('words', W.tile(codes, bits)); keep('scale', scale.T.contiguous().half())
        keep('zero', None if zero is None else zero.T.contiguous().to(torch.uint8))
        keep('count', torch.zeros(math.ceil(len(codes)/64)*W.DECODE//64, dtype=torch.int32))

    def forward(self, x:Tensor, bias:Tensor|None=None):
        require("QLinear(backend='triton')", x, self.words)
        t = x.half() if x.dtype is torch.float32 else x
        y = W.product(t.reshape(-1,t.shape[-1]), self.words, self.scale, self.zero, self.bits, self.group, self.count)
        y = y.reshape(*x.shape[:-1], -1).to(x.dtype)
        return y if bias is None else y+bias.to(y)

def fused(
    q,        # a `QTensor` on an integer grid
)->Fused:     # a layer without bias
    "The layer that multiplies with `q`; ValueError if the kernel does not know its format or its sizes"
    return Fused(*_affine(q))

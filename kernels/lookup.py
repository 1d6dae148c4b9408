"""16-bit inputs times weights whose 4-bit codes stand for any sixteen numbers: NF4, FP4, tables that were trained.

The codes lie as those of `wna16` do. There a number is computed from its code, here it is looked up without memory: the
table is 32 bytes, the low and the high byte of each entry, and fills eight registers. One permutation of bytes reads
four nibbles at once and takes for each of them one of eight bytes by its low three bits, a second one does the same
with the other half of the table, and a third one chooses between both by the fourth bit. Two words hold eight codes and
cost 25 instructions, 20 of them permutations; `wna16` needs ten or so. Numbers are those of the table, in 16 bits."""
import torch
from torch import Tensor
from jaxtyping import Float, Int16, Int32, UInt8
from quantlab.kernels._launch import INTERPRET, constexpr_function, jit, require, tl
from quantlab.kernels import wna16 as W
from quantlab.kernels.wna16 import _group, _load, _overlap, _write, tile

RTOL, ATOL = 2e-2, 2e-2      # as for `wna16`
COLS, WORDS = W.BK[4], W.BK[4]//4 # columns of a tile, words of one of its rows

def _check(x, q, scale, table, group):
    if tuple(table.shape)!=(16,) or table.dtype!=x.dtype:
        raise ValueError(f'table of {tuple(table.shape)}, {table.dtype}; 16 numbers in {x.dtype} are needed')
    return W._check(x, q, scale, None, 4, group)

def lookup_ref(
    x:Float[Tensor,"m k"],     # inputs
    q:UInt8[Tensor,"n k"],     # codes, 0 to 15
    scale:Float[Tensor,"g n"], # one for each group of columns
    table:Float[Tensor,"t"],   # the number of each code, in the dtype of x
    group:int,                 # columns that share a scale
)->Float[Tensor,"m n"]:
    "x times the transposed decoded weights, in float64, rounded once"
    _check(x, q, scale, table, group)
    values = table.double()[q.long()]*scale.double().T.repeat_interleave(group, 1)
    return (x.double()@values.T).to(x.dtype)

def registers(
    table:Float[Tensor,"t"], # sixteen numbers of 16 bits
)->Int32[Tensor,"r"]:        # four times four low bytes, then four times four high bytes
    "The table as the permutations read it"
    b = table.contiguous().view(torch.uint8).reshape(16, 2)
    return b.T.contiguous().view(torch.int32).flatten()

@constexpr_function
def _asm(): # words, table -> planes 0 to 3; every input of 32 bits comes once for each of the two words
    t = [f'${5+2*k}' for k in range(8)]
    def half(word, name): # bytes of four codes: low ones, high ones
        pick, choose = ('s','m') if word==0 else ('s1','m1')
        return ' '.join(f'prmt.b32 a, {t[4*h]}, {t[4*h+1]}, {pick}; prmt.b32 b, {t[4*h+2]}, {t[4*h+3]}, {pick}; '
                        f'prmt.b32 {p}, a, b, {choose};' for h,p in enumerate(('lo','hi')))+(
            f' prmt.b32 {name}0, lo, hi, 0x5140; prmt.b32 {name}1, lo, hi, 0x7362;')
    return ('{ .reg .b32 a, b, lo, hi, s, m, s1, m1, u0, u1, v0, v1; and.b32 s, $4, 0x77777777; shr.u32 m, $4, 1; '
            'lop3.b32 m, m, 0x44444444, 0x32103210, 0xea; shr.u32 s1, s, 16; shr.u32 m1, m, 16; '
            f'{half(0,"u")} {half(1,"v")} '
            'prmt.b32 $0, u0, v0, 0x5410; prmt.b32 $1, u0, v0, 0x7632; '
            'prmt.b32 $2, u1, v1, 0x5410; prmt.b32 $3, u1, v1, 0x7632; }')

@jit
def _table(bytes): # the eight registers
    return (tl.load(bytes), tl.load(bytes+1), tl.load(bytes+2), tl.load(bytes+3),
            tl.load(bytes+4), tl.load(bytes+5), tl.load(bytes+6), tl.load(bytes+7))

@jit
def _numbers(w, regs, table, PLAIN:tl.constexpr): # words -> their four planes
    if PLAIN:
        c = w.to(tl.int32)
        return (tl.load(table+(c & 15)), tl.load(table+((c >> 4) & 15)), tl.load(table+((c >> 8) & 15)),
                tl.load(table+((c >> 12) & 15)))
    else:
        a, b, c, d, e, f, g, h = regs
        if table.dtype.element_ty==tl.float16:
            return tl.inline_asm_elementwise(_asm(), '=r,=r,=r,=r'+17*',r', [w,a,b,c,d,e,f,g,h],
                                             (tl.float16,tl.float16,tl.float16,tl.float16), True, 2)
        else: return tl.inline_asm_elementwise(_asm(), '=r,=r,=r,=r'+17*',r', [w,a,b,c,d,e,f,g,h],
                                               (tl.bfloat16,tl.bfloat16,tl.bfloat16,tl.bfloat16), True, 2)

@jit
def _lookup(x, words, scale, table, bytes, out, part, count, M, N, K, xs, split, GROUP:tl.constexpr, COLS:tl.constexpr,
            Q:tl.constexpr, BM:tl.constexpr, BN:tl.constexpr, RUN:tl.constexpr, ONE:tl.constexpr, PLAIN:tl.constexpr):
    "One program: BN rows of weights by BM tokens, over 1/split of the columns"
    pm, pn, pk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    NG:tl.constexpr = COLS//GROUP if GROUP<COLS else 1
    PG:tl.constexpr = 4//NG
    R:tl.constexpr = PG if PG<RUN else RUN
    first, last = pk*(K//COLS)//split, (pk+1)*(K//COLS)//split
    if not PLAIN: _overlap()
    n, m, regs = pn*BN+tl.arange(0, BN), pm*BM+tl.arange(0, BM), _table(bytes)
    seen, real, acc = m<M, n<N, tl.zeros((BN,BM), tl.float32)
    wp = words+(n//64).to(tl.int64)[:,None]*(K*16)+first*(16*COLS)+(n%64)[:,None]*Q+tl.arange(0, Q)[None,:]
    xp = x+m.to(tl.int64)[None,:]*xs+first*COLS+tl.arange(0, R*Q)[:,None]
    after = tl.load(scale+first*COLS//GROUP*N+n, mask=real, other=0)
    for t in range(first, last):
        planes = _numbers(_load(wp+(t-first)*(16*COLS), real, Q, 4)[0], regs, table, PLAIN)
        for g in tl.static_range(NG):
            s, h = after, t*COLS//GROUP+g+1 if NG>1 else (t+1)*COLS//GROUP
            after = tl.load(scale+h*N+n, mask=real & (h*GROUP<K), other=0)
            acc = _group(planes, xp+(t-first)*COLS, s, s, acc, seen, g, PG, R, Q, 0, True, PLAIN)
    _write(acc, out, part, count+pn*tl.num_programs(0)+pm, m, n, M, N, pk, split, ONE)

def run(
    x:Float[Tensor,"m k"],     # inputs, float16 or bfloat16, any row stride
    words:Int16[Tensor,"w"],   # codes, from `wna16.tile`
    scale:Float[Tensor,"g n"], # as for the reference
    table:Float[Tensor,"t"],   # as for the reference
    group:int,                 # as for the reference
    plan:tuple=(),             # block sizes; empty takes them from `wna16.blocks`
    count:Int32[Tensor,"c"]|None=None, # as for `wna16.run`
)->Float[Tensor,"m n"]:
    "The product with packed weights"
    (m, k), n = x.shape, scale.shape[1]
    bm, bn, split, warps, stages, planes, regs = plan or W.blocks(m, n, k, 0)
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    if not m: return out
    split = min(split, k//COLS); grid = (-(-m//bm), -(-n//bn), split)
    part = torch.empty(split*m*n if split>1 else 0, dtype=torch.float32, device=x.device)
    need = grid[0]*grid[1] if split>1 else 0
    if count is None or len(count)<need: count = torch.zeros(need, dtype=torch.int32, device=x.device)
    x = x if x.stride(1)==1 else x.contiguous()
    _lookup[grid](x, words, scale, table, registers(table), out, part, count, m, n, k, x.stride(0), split, group, COLS,
                  WORDS, bm, bn, planes, split==1, INTERPRET, num_warps=warps, num_stages=stages, launch_pdl=True,
                  maxnreg=regs or None)
    return out

def lookup(
    x:Float[Tensor,"m k"],     # float16 or bfloat16
    q:UInt8[Tensor,"n k"],     # codes, one a byte; a layer packs them once, with `wna16.tile`, and calls `run`
    scale:Float[Tensor,"g n"], # as for the reference
    table:Float[Tensor,"t"],   # as for the reference
    group:int,                 # as for the reference
    plan:tuple=(),             # as for `run`
)->Float[Tensor,"m n"]:
    "`lookup_ref` as one Triton kernel; RuntimeError where it cannot run"
    require('lookup', x, q, scale, table)
    _check(x, q, scale, table, group)
    return run(x, tile(q,4), scale.contiguous(), table, group, plan)

def moved(x, q, scale, table, group)->int: # arguments of the reference -> bytes
    "What must be read and written at least"
    return W.moved(x, q, scale, None, 4, group)+2*len(table)

def _make(device, m, n, k, group, dtype=torch.float16):
    x, q, s, *_ = W._make('cpu', m, n, k, 4, group)
    t = torch.randn(16, generator=torch.Generator().manual_seed(k)).sort().values*4
    return x.to(device, dtype), q.to(device), s.to(device), t.to(device, dtype), group

def cases(
    device='cpu', # where the tensors are made
)->dict:          # name of what is awkward about it -> arguments
    "Inputs on which kernel and reference must agree"
    def make(*a): return _make(device, *a)
    x, q, s, t, g = make(6, 64, 256, 128)
    h = torch.ones(1,1,dtype=torch.float16); one = h, torch.ones(1,1,dtype=torch.uint8), torch.ones(1,1), h[0]
    return dict(one=(*(a.to(device) for a in one), 1), odd=make(17,65,256,128), short=make(3,64,512,32),
                half=make(5,130,384,64), long=make(2,64,512,256), extremes=(x*100, q//15*15, s, t, g),
                strided=(x[::2], q, s, t, g), empty=make(0,64,128,128), fifteen=(x, q, s, t[:15], g))

def loads(
    device='cuda', # where the tensors are made
)->dict:           # shape and tokens in words -> arguments
    "Inputs of the size of real layers, for measuring"
    return {f'{k}x{n} batch {m}':_make(device, m, n, k, 128) for k,n in ((4096,4096),) for m in (1,16)}

def builds()->list: # (kernel, types of its arguments, its constants) that must compile for a GPU
    "Both types of inputs"
    def one(kind, group, bm):
        like = dict(x='*'+kind, words='*i16', scale='*fp16', table='*'+kind, bytes='*i32', out='*'+kind, part='*fp32',
                    count='*i32', **{k:'i32' for k in ('M','N','K','xs','split')})
        return _lookup, like, dict(GROUP=group, COLS=COLS, Q=WORDS, BM=bm, BN=64, RUN=2, ONE=False, PLAIN=False)
    return [one('fp16',128,16), one('bf16',32,32)]

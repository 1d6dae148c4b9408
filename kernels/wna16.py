"""16-bit inputs times weights of 2, 3, 4 or 8 bits, which cross memory packed and become numbers in registers.

`tile` packs codes offline. A tile is 64 rows by BK columns and lies in memory in one piece: what a program reads
are a few long streams. A 16-bit word of it holds one code from each of P = 16/bits *planes*: word j holds the columns
j, j+Q, j+2Q, ... of its row, with Q = BK/P. Plane i is `(word >> i*bits) & mask` for all words at once and needs no
shuffle. Codes of 3 bits are words of 2-bit planes and words of 1-bit planes.

A half with the bits 0x6400 is 1024, and its lowest mantissa bit weighs 1, so `code | 0x6400` is the number 1024+code.
Two codes cost a shift, one logic instruction of three inputs, and one subtraction of 1024+zero, which is exact.
(0x4300 is 128 in bfloat16 and serves codes below 128.)

The weights are the LEFT operand, out' = W x': rows of W fill the matrix unit however few tokens there are. Where there
are fewer blocks than multiprocessors, the columns are cut into `split` parts, and the last program of a block to arrive
adds the parts up in the order of the columns: the bits of the result do not depend on which program that was."""
import math
import torch
from torch import Tensor
from jaxtyping import Float, Int16, Int32, UInt8
from quantlab.kernels._launch import INTERPRET, jit, require, tl, constexpr_function

RTOL, ATOL = 2e-2, 2e-2      # one rounding of the result to 16 bits, and sums in another order; entries are about 1
ROWS = 64                    # of a tile
BK = {2:128, 3:256, 4:128, 8:64} # columns of a tile

def _check(x, q, scale, zero, bits, group): # rows, columns
    if bits not in BK: raise ValueError(f'bits={bits}; codes have {", ".join(map(str,BK))} bits')
    n, k = q.shape
    if x.shape[-1]!=k: raise ValueError(f'x has {x.shape[-1]} columns, the weights {k}; they must agree')
    if k%BK[bits]: raise ValueError(f'{k} columns; codes of {bits} bits need a multiple of {BK[bits]}')
    if group<16 or k%group or BK[bits]%group and group%BK[bits]:
        raise ValueError(f'group={group}; use a divisor of {k} that divides {BK[bits]} or is a multiple of it, '
                         'from 16 up')
    if tuple(scale.shape)!=(k//group, n) or zero is not None and zero.shape!=scale.shape:
        raise ValueError(f'scale of {tuple(scale.shape)}; {(k//group, n)} is needed, and as many zero points')
    return n, k

def _words(c, bits): # [n,t,BK] codes -> [n,t,Q] words
    p = 16//bits; planes = c.long().unflatten(-1, (p,-1))
    w = (planes << (torch.arange(p, device=c.device)*bits)[:,None]).sum(-2)
    return torch.where(w>=2**15, w-2**16, w).to(torch.int16)

def tile(
    q:UInt8[Tensor,"n k"], # codes
    bits:int,              # of a code
)->Int16[Tensor,"m"]:      # words; rows are filled up to a multiple of 64 with zeros
    "Codes in the order in which the kernel reads them: tile by tile, and 2-bit words before 1-bit words in a tile"
    if bits not in BK or q.shape[1]%BK[bits]:
        raise ValueError(f'{q.shape[1]} codes of {bits} bits a row; use a multiple of {BK.get(bits,BK)}')
    rows = -(-len(q)//ROWS)*ROWS
    c = torch.cat([q, q.new_zeros(rows-len(q), q.shape[1])]).unflatten(1, (-1,BK[bits]))
    if bits==3: files = [_words(c[...,:128]&3, 2), _words(c[...,128:]&3, 2), _words(c>>2, 1)]
    else: files = [_words(c, bits)]
    return torch.cat([f.unflatten(0,(-1,ROWS)).transpose(1,2).flatten(2) for f in files], -1).flatten()

def wna16_ref(
    x:Float[Tensor,"m k"],          # inputs
    q:UInt8[Tensor,"n k"],          # codes
    scale:Float[Tensor,"g n"],      # distance between levels, one for each group of columns
    zero:UInt8[Tensor,"g n"]|None,  # code of zero; None is 2^(bits-1) everywhere
    bits:int,                       # of a code
    group:int,                      # columns that share a scale
)->Float[Tensor,"m n"]:
    "x times the transposed decoded weights, in float64, rounded once"
    _check(x, q, scale, zero, bits, group)
    def wide(t): return t.double().T.repeat_interleave(group, 1)
    W = (q.double()-(2**(bits-1) if zero is None else wide(zero)))*wide(scale)
    return (x.double()@W.T).to(x.dtype)

@constexpr_function
def _one(shift, bits, base, kind): # two words and two zeros -> two codes minus zero
    m = 2**bits-1
    return (f'{{ .reg .b32 t; shr.u32 t, $1, {shift}; lop3.b32 t, t, 0x{m:04x}{m:04x}, 0x{base:04x}{base:04x}, 0xea; '
            f'sub.rn.{kind}x2 $0, t, $2; }}')

@constexpr_function
def _two(i, base, kind): # the same from 2-bit and 1-bit words
    shift, move = 2*(i%8), f'shr.u32 u, $2, {i-2}' if i>=2 else f'shl.b32 u, $2, {2-i}'
    return (f'{{ .reg .b32 t; .reg .b32 u; shr.u32 t, $1, {shift}; {move}; and.b32 u, u, 0x00040004; '
            f'lop3.b32 t, t, 0x00030003, u, 0xea; or.b32 t, t, 0x{base:04x}{base:04x}; sub.rn.{kind}x2 $0, t, $3; }}')

@jit
def _plane(w, h, z, I:tl.constexpr, BITS:tl.constexpr, HALF:tl.constexpr, PLAIN:tl.constexpr): # plane I, less zero
    if PLAIN:
        if BITS==3: c = ((w.to(tl.int32) >> (2*(I%8))) & 3) | (((h.to(tl.int32) >> I) & 1) << 2)
        else: c = (w.to(tl.int32) >> (BITS*I)) & ((1 << BITS)-1)
        return (c+(1024 if HALF else 128)).to(z.dtype)-z
    elif BITS==3:
        if HALF: return tl.inline_asm_elementwise(_two(I,0x6400,'f16'), '=r,r,r,r', [w,h,z], tl.float16, True, 2)
        else: return tl.inline_asm_elementwise(_two(I,0x4300,'bf16'), '=r,r,r,r', [w,h,z], tl.bfloat16, True, 2)
    elif HALF: return tl.inline_asm_elementwise(_one(BITS*I,BITS,0x6400,'f16'), '=r,r,r', [w,z], tl.float16, True, 2)
    else: return tl.inline_asm_elementwise(_one(BITS*I,BITS,0x4300,'bf16'), '=r,r,r', [w,z], tl.bfloat16, True, 2)

@jit
def _span(w, h, z, I:tl.constexpr, C:tl.constexpr, BITS:tl.constexpr, HALF:tl.constexpr, PLAIN:tl.constexpr):
    "C planes from I on, side by side"
    if C==1: return _plane(w, h, z, I, BITS, HALF, PLAIN)
    else:
        a, b = _span(w,h,z,I,C//2,BITS,HALF,PLAIN), _span(w,h,z,I+C//2,C//2,BITS,HALF,PLAIN)
        return tl.join(a, b).permute(0,2,1).reshape(a.shape[0], 2*a.shape[1])

@jit
def _load(wp, real, Q:tl.constexpr, BITS:tl.constexpr): # words of a tile; codes of 3 bits have two and a third of 1 bit
    w = tl.load(wp, mask=real[:,None], other=0, eviction_policy='evict_first')
    if BITS!=3: return w, w, w
    else:
        w1 = tl.load(wp+64*Q, mask=real[:,None], other=0, eviction_policy='evict_first')
        return w, w1, tl.load(wp+128*Q, mask=real[:,None], other=0, eviction_policy='evict_first')

@jit
def _zero(zero, r, N, n, real, HALF:tl.constexpr, BITS:tl.constexpr, ASYM:tl.constexpr): # what base+code loses
    BASE:tl.constexpr = 1024 if HALF else 128
    if ASYM: z = tl.load(zero+r*N+n, mask=real, other=0).to(tl.float32)+BASE
    else: z = tl.full(n.shape, BASE+2**(BITS-1), tl.float32)
    return z.to(tl.float16 if HALF else tl.bfloat16)

@jit
def _group(words, x, s, z, acc, seen, G:tl.constexpr, PG:tl.constexpr, RUN:tl.constexpr, Q:tl.constexpr,
           BITS:tl.constexpr, EARLY:tl.constexpr, HALF:tl.constexpr, PLAIN:tl.constexpr):
    "`acc` and the product of the planes of group G of a tile with its inputs"
    sums = acc if EARLY else tl.zeros_like(acc)
    for p in tl.static_range(PG//RUN):
        w = words[1] if G*PG+p*RUN>=8 else words[0]
        a = _span(w, words[2], z[:,None], G*PG+p*RUN, RUN, BITS, HALF, PLAIN).to(x.dtype.element_ty)
        if EARLY: a = a*s.to(a.dtype)[:,None]
        sums = tl.dot(a, tl.load(x+(G*PG+p*RUN)*Q, mask=seen[None,:], other=0), sums)
    return sums if EARLY else acc+sums*s.to(tl.float32)[:,None]

@jit
def _write(acc, out, part, here, o, ok, MN, pk, split, ONE:tl.constexpr):
    "The result; of several parts the last to arrive adds them up, in their order"
    if ONE: tl.store(out+o, acc.to(out.dtype.element_ty), mask=ok)
    else:
        tl.store(part+pk*MN+o, acc, mask=ok, cache_modifier='.cg')
        tl.debug_barrier()
        if tl.atomic_add(here, 1, sem='acq_rel')==split-1:
            total = tl.zeros_like(acc)
            for k in range(split): total += tl.load(part+k*MN+o, mask=ok, other=0, cache_modifier='.cg')
            tl.store(out+o, total.to(out.dtype.element_ty), mask=ok)
            tl.store(here, 0)

@jit
def _wna16(x, words, scale, zero, out, part, count, M, N, K, xs, split, GROUP:tl.constexpr, BITS:tl.constexpr,
           COLS:tl.constexpr, Q:tl.constexpr, BM:tl.constexpr, BN:tl.constexpr, ONE:tl.constexpr, EARLY:tl.constexpr,
           ASYM:tl.constexpr, PLAIN:tl.constexpr):
    "One program: BN rows of W by BM tokens, over 1/split of the columns; EARLY scales weights, not sums"
    pm, pn, pk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    NG:tl.constexpr = COLS//GROUP if GROUP<COLS else 1 # groups of a tile
    PG:tl.constexpr = COLS//Q//NG                      # planes of a group
    RUN:tl.constexpr = PG if PG<8 else 8               # planes of a product
    HALF:tl.constexpr = BITS==8 or x.dtype.element_ty==tl.float16 # 128+code in bfloat16 needs codes below 128
    first, last, size = pk*(K//COLS)//split, (pk+1)*(K//COLS)//split, K*BITS//16*64 # tiles; words of a row of tiles
    n, m = pn*BN+tl.arange(0, BN), pm*BM+tl.arange(0, BM)
    seen, real, acc = m<M, n<N, tl.zeros((BN,BM), tl.float32)
    wp = words+(n//64).to(tl.int64)[:,None]*size+(n%64)[:,None]*Q+tl.arange(0, Q)[None,:]+first*(4*COLS*BITS)
    xp = x+m.to(tl.int64)[None,:]*xs+tl.arange(0, RUN*Q)[:,None]+first*COLS
    after = tl.load(scale+first*COLS//GROUP*N+n, mask=real, other=0) # scales come one group ahead
    for t in range(first, last):
        w = _load(wp+(t-first)*(4*COLS*BITS), real, Q, BITS)
        for g in tl.static_range(NG):
            s, r = after, t*COLS//GROUP+g
            ahead = r+1 if NG>1 else (t+1)*COLS//GROUP
            after = tl.load(scale+ahead*N+n, mask=real & (ahead*GROUP<K), other=0)
            z = _zero(zero, r, N, n, real, HALF, BITS, ASYM)
            acc = _group(w, xp+(t-first)*COLS, s, z, acc, seen, g, PG, RUN, Q, BITS, EARLY, HALF, PLAIN)
    o, ok = m.to(tl.int64)[None,:]*N+n[:,None], seen[None,:] & real[:,None]
    _write(acc, out, part, count+pn*tl.num_programs(0)+pm, o, ok, M.to(tl.int64)*N, pk, split, ONE)

def blocks(
    m:int, n:int, k:int, # tokens, rows and columns of the weights
    bits:int,            # of a code
)->tuple:                # tokens and rows of a program, parts of the columns, scale early, warps, stages
    "Block sizes for a shape"
    bm = min(max(16, 2**math.ceil(math.log2(max(m,1)))), 64)
    tiles = max(1, -(-n//128)*-(-m//bm))
    return bm, 128, max(1, min(4, 264//tiles, k//(4*BK[bits]))), False, 4, 4

def run(
    x:Float[Tensor,"m k"],         # inputs, float16 or bfloat16, any row stride
    words:Int16[Tensor,"w"],       # from `tile`
    scale:Float[Tensor,"g n"],     # as for the reference
    zero:UInt8[Tensor,"g n"]|None, # as for the reference
    bits:int, group:int,           # as for the reference
    plan:tuple=(),                 # block sizes; empty takes them from `blocks`
    count:Int32[Tensor,"c"]|None=None, # zeros, one for each block of the result, and zeros afterwards; None makes them
)->Float[Tensor,"m n"]:
    "The product with packed weights"
    (m, k), n = x.shape, scale.shape[1]
    bm, bn, split, early, warps, stages = plan or blocks(m, n, k, bits)
    grid = (-(-m//bm), -(-n//bn), split)
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    if not m: return out
    part = torch.empty(split*m*n if split>1 else 0, dtype=torch.float32, device=x.device)
    if count is None: count = torch.zeros(grid[0]*grid[1] if split>1 else 0, dtype=torch.int32, device=x.device)
    x = x if x.stride(1)==1 else x.contiguous()
    q = 16 if bits<4 else 32
    zeros = scale if zero is None else zero
    _wna16[grid](x, words, scale, zeros, out, part, count, m, n, k, x.stride(0), split, group, bits, BK[bits], q, bm,
                 bn, split==1, early, zero is not None, INTERPRET, num_warps=warps, num_stages=stages)
    return out

def wna16(
    x:Float[Tensor,"m k"],          # inputs, float16 or bfloat16
    q:UInt8[Tensor,"n k"],          # codes, one a byte; a layer packs them once, with `tile`, and calls `run`
    scale:Float[Tensor,"g n"],      # as for the reference
    zero:UInt8[Tensor,"g n"]|None,  # as for the reference
    bits:int,                       # of a code
    group:int,                      # columns that share a scale
    plan:tuple=(),                  # block sizes; empty takes them from `blocks`
)->Float[Tensor,"m n"]:
    "`wna16_ref` as one Triton kernel; RuntimeError where it cannot run"
    require('wna16', x, q, scale)
    _check(x, q, scale, zero, bits, group)
    return run(x, tile(q,bits), scale.contiguous(), None if zero is None else zero.contiguous(), bits, group, plan)

def moved(x, q, scale, zero, bits, group)->int: # arguments of the reference -> bytes
    "What must be read and written at least"
    w = q.numel()*bits//8+scale.numel()*scale.element_size()+(0 if zero is None else zero.numel())
    return w+x.numel()*x.element_size()+len(x)*len(q)*x.element_size()

def _make(device, m, n, k, bits, group, asym=False, dtype=torch.float16):
    g = torch.Generator().manual_seed(m+n+k+bits)
    x = torch.randn(m, k, generator=g).to(dtype)
    q = torch.randint(0, 2**bits, (n,k), generator=g, dtype=torch.uint8)
    s = ((torch.rand(k//group, n, generator=g)+.5)/(2**bits*k**.5)).half()
    z = torch.randint(0, 2**bits, (k//group,n), generator=g, dtype=torch.uint8) if asym else None
    return x.to(device), q.to(device), s.to(device), z if z is None else z.to(device), bits, group

def cases(
    device='cpu', # where the tensors are made
)->dict:          # name of what is awkward about it -> arguments
    "Inputs on which kernel and reference must agree"
    def make(*a, **k): return _make(device, *a, **k)
    one = (torch.ones(1,1,dtype=torch.float16), torch.ones(1,1,dtype=torch.uint8), torch.ones(1,1), None, 4, 1)
    x, q, s, z, *rest = make(6, 64, 256, 4, 128)
    full = make(3, 64, 256, 4, 64)
    return dict(one=tuple(t.to(device) if isinstance(t,Tensor) else t for t in one), odd=make(17,65,256,4,128),
                two=make(5,64,256,2,128,True), three=make(5,130,512,3,64,True), four=make(3,64,512,4,32,True),
                eight=make(5,64,256,8,64,True), long_group=make(2,64,512,4,256), three_long=make(33,64,512,3,512),
                extremes=(full[0]*100, full[1]//15*15, *full[2:]), strided=(x[::2], q, s, z, *rest),
                empty=make(0,64,128,4,128), bad_group=make(1,64,128,4,8))

def loads(
    device='cuda', # where the tensors are made
)->dict:           # shape, width and tokens in words -> arguments
    "Inputs of the size of real layers, for measuring"
    return {f'{k}x{n} {b} bits batch {m}':_make(device, m, n, k, b, 128)
            for k,n in ((4096,4096),(8192,28672)) for b in (2,3,4,8) for m in (1,16,64)}

def builds()->list: # (kernel, types of its arguments, its constants) that must compile for a GPU
    "Every width, both types of inputs"
    def one(bits, kind, asym, one):
        like = dict(x='*'+kind, words='*i16', scale='*fp16', zero='*u8' if asym else '*fp16', out='*'+kind,
                    part='*fp32', count='*i32', **{k:'i32' for k in ('M','N','K','xs','split')})
        return _wna16, like, dict(GROUP=64, BITS=bits, COLS=BK[bits], Q=16 if bits<4 else 32, BM=16, BN=64, ONE=one,
                                  EARLY=not asym, ASYM=asym, PLAIN=False)
    return [one(2,'fp16',False,True), one(3,'fp16',True,False), one(4,'bf16',True,False), one(8,'bf16',False,True)]

"""Every kernel equals its reference on awkward inputs, in Triton's interpreter or on the GPU."""
import importlib, inspect, os, subprocess, sys
from pathlib import Path
import pytest, torch
from torch import Tensor
from quantlab.core.method import near, untouched
from quantlab.kernels._launch import INTERPRET

NAMES = sorted(f.stem for f in (Path(__file__).parents[1]/'kernels').glob('[!_]*.py'))
OPS = {n:importlib.import_module(f'quantlab.kernels.{n}') for n in NAMES}
CASES = [pytest.param(n, c, id=f'{n}-{c}') for n,m in OPS.items() for c in m.cases()]
AWKWARD = ('one', 'odd', 'extremes', 'strided', 'empty') # 'odd' is no multiple of the block

def outcome(f, args): # a tensor, or the message with which the arguments are refused
    try: return f(*args)
    except ValueError as e: return str(e)

@pytest.mark.parametrize('name,case', CASES)
def test_equals_reference(name, case):
    m = OPS[name]; args = m.cases('cpu' if INTERPRET else 'cuda')[case]
    with untouched(*(a for a in args if isinstance(a,Tensor))): got = outcome(getattr(m,name), args)
    want = outcome(getattr(m,name+'_ref'), args)
    if isinstance(want,str): assert got==want
    else: near(got, want, m.RTOL, m.ATOL)

@pytest.mark.parametrize('name', NAMES)
def test_layout_of_file(name):
    m = OPS[name]; kernel, ref = (list(inspect.signature(getattr(m,f)).parameters) for f in (name, name+'_ref'))
    assert kernel[:len(ref)]==ref, f'{name}{tuple(kernel)} must begin with the arguments of its reference {tuple(ref)}'
    assert hasattr(m, '_'+name) and m.RTOL>=0 and m.ATOL>=0
    assert set(AWKWARD)<=set(m.cases()), f'cases() lacks {sorted(set(AWKWARD)-set(m.cases()))}'

@pytest.mark.parametrize('name', NAMES)
def test_cases_are_awkward(name):
    tensors = {c:[a for a in args if isinstance(a,Tensor)] for c,args in OPS[name].cases().items()}
    assert all(t.numel()==1 for t in tensors['one']), 'one: every tensor has one element'
    assert any(not t.is_contiguous() for t in tensors['strided']), 'strided: some tensor is not contiguous'
    assert any(t.numel()==0 for t in tensors['empty']), 'empty: some tensor has no element'

@pytest.mark.parametrize('name', NAMES)
def test_refuses_where_it_cannot_run(name, monkeypatch):
    monkeypatch.setattr('quantlab.kernels._launch.HAS_TRITON', False)
    kernel, args = getattr(OPS[name],name), OPS[name].cases()['one']
    with pytest.raises(RuntimeError, match='triton is not installed'): kernel(*args)

COMPILE = """
import importlib, sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
for f,types,constants in importlib.import_module('quantlab.kernels.'+sys.argv[1]).builds():
    source = ASTSource(f, {**types, **{k:'constexpr' for k in constants}}, constants)
    print(len(triton.compile(source, target=GPUTarget('cuda',90,32)).asm['cubin']))
"""

@pytest.mark.parametrize('name', NAMES)
def test_compiles_for_hopper(name, tmp_path): # needs no GPU; the interpreter forgives what the compiler does not
    env = {**os.environ, 'TRITON_INTERPRET':'0', 'TRITON_CACHE_DIR':str(tmp_path)}
    done = subprocess.run([sys.executable,'-c',COMPILE,name], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode==0, done.stderr[-3000:]
    sizes = list(map(int, done.stdout.split())); assert sizes and all(sizes)

@pytest.mark.parametrize('bits', [2,3,4,8])
def test_packed_weights_are_decoded(bits): # what `run` multiplies with and `dense` returns are the same numbers
    W = OPS['wna16']; device = 'cpu' if INTERPRET else 'cuda'
    x, q, s, z, *_ = W._make(device, 4, 65, 512, bits, 64, asym=True)
    want = (q.double()-z.double().T.repeat_interleave(64,1))*s.double().T.repeat_interleave(64,1)
    near(W.dense(W.tile(q,bits), s, z, bits, 64), want.half(), 0, 0)

@pytest.mark.parametrize('split', [1,2,3,99])
def test_parts_are_added_in_a_fixed_order(split): # any number of parts; the same bits every time
    W = OPS['wna16']; args = W._make('cpu' if INTERPRET else 'cuda', 3, 130, 512, 4, 64)
    plan = (16, 64, split, 4, 2, 2, 0)
    got = [W.wna16(*args, plan) for _ in range(2)]
    near(got[0], W.wna16_ref(*args), W.RTOL, W.ATOL); near(got[0], got[1], 0, 0)

def test_transformed_rows_as_codes(): # within half a level of what they stand for
    H = OPS['hadamard']; args = H.cases('cpu' if INTERPRET else 'cuda')['even']
    codes, scale = H.hadamard_codes(*args)
    want = H.hadamard_ref(args[0].double(), *args[1:]); off = (codes.double()*scale.double()[:,None]-want).abs()
    assert codes.abs().amax(1).eq(127).all() and (off<=scale.double()[:,None]*.501).all()

def test_product_takes_the_faster_way(monkeypatch): # as the table of block sizes says
    W = OPS['wna16']; x, q, s, z, bits, group = W._make('cpu' if INTERPRET else 'cuda', 2, 64, 256, 4, 64)
    for way in (True, False):
        monkeypatch.setattr(W, 'decodes', lambda *a: way); asked = []
        monkeypatch.setattr(W, 'run', lambda x, *a, **k: asked.append(way) or x[:,:64])
        y = W.product(x, W.tile(q,bits), s, z, bits, group); assert asked==([] if way else [False])
        if way: near(y, W.wna16_ref(x,q,s,z,bits,group), W.RTOL, W.ATOL)
        monkeypatch.undo()

def test_counters_too_few_for_the_blocks_are_made_anew(): # a layer's own are for few tokens
    W = OPS['wna16']; args = W._make('cpu' if INTERPRET else 'cuda', 40, 64, 512, 4, 64); x, q, *rest = args
    few = torch.zeros(1, dtype=torch.int32, device=x.device)
    near(W.run(x, W.tile(q,4), *rest, (16,64,2,4,2,2,0), few), W.wna16_ref(*args), W.RTOL, W.ATOL)

def test_zero_points_between_levels_are_refused(): # they would be cut to whole ones
    from quantlab.formats.int import Int
    from quantlab.kernels._layer import fused
    q = Int(4,32)(torch.randn(8, 128, generator=torch.Generator().manual_seed(0))); fused(q)
    q.parts['zero'] = q.parts['zero'].half()+.5
    with pytest.raises(ValueError, match='whole zero points'): fused(q)

@pytest.mark.parametrize('name', ['nf', 'minifloat'])
def test_layers_on_lists_of_numbers(name): # NF4 and FP4: the layer equals its decoded weight
    from quantlab.core.method import methods
    from quantlab.core.qlayer import QLinear
    device, g = 'cpu' if INTERPRET else 'cuda', torch.Generator().manual_seed(0)
    q = methods()[name].make()(torch.randn(70, 256, generator=g)/16); x = torch.randn(5, 256, generator=g).half()
    assert q.width['codes']==4
    y = QLinear(q, None, 'triton', torch.float16).to(device)(x.to(device)).cpu()
    near(y, (x.double()@q.decode().double().T).half(), 2e-2, 2e-2)

"""Folders that programs read which nobody here wrote; and folders that nobody should have written."""
import json, os, shutil, subprocess, sys, tempfile
from importlib.util import find_spec
from pathlib import Path
import pytest, torch
from hypothesis import given, strategies as st
from transformers import AutoModelForCausalLM
from quantlab.core.method import gen
from quantlab.core.pipe import pipe, qlayers, quantize
from quantlab.core.settings import settings
from quantlab.core.testbed import tiny_llama
from quantlab.export.compressed import CompressedTensors
from quantlab.export.gguf import GGUF, load_gguf, save_gguf
from quantlab.export.hub import Hub
from quantlab.export.matrix import ALONE
from quantlab.export.onnx import ONNX
from quantlab.export.packed import AWQCheckpoint, GPTQCheckpoint
from quantlab.formats.blocks import MX, NVFP4
from quantlab.formats.int import Int, SymInt
from quantlab.formats.minifloat import Minifloat
from quantlab.ptq.rtn import RTN
from test_properties import tries

IDS = torch.randint(0, 96, (2,24), generator=gen(0))
PATHS = dict(hub=Hub(), compressed=CompressedTensors(), gptq=GPTQCheckpoint(), awq=AWQCheckpoint())

def small(codec): # a model whose sizes suit every format
    return pipe(tiny_llama(hidden_size=64, intermediate_size=128, vocab_size=96), [IDS], quantize(RTN(codec)))

def logits(m):
    with torch.no_grad(): return m(IDS).logits.float()

def fresh(code, *args, **env): # in a process of its own
    command = [sys.executable, '-c', code, *args]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ|env)

# transformers

FRESH = '''import sys, quantlab, torch; from transformers import AutoModelForCausalLM
from safetensors.torch import load_file; torch.set_num_threads(1); x = load_file(sys.argv[2])
m = AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert torch.equal(m(x['ids']).logits, x['logits']), 'other logits'
print(type(m.model.layers[0].mlp.up_proj).__name__)'''

def test_importing_quantlab_is_enough_for_from_pretrained(tmp_path):
    from safetensors.torch import save_file
    q = small(Int(3,32)); f = Hub().save(q, tmp_path/'q')
    save_file(dict(ids=IDS, logits=logits(q)), tmp_path/'x.safetensors')
    r = fresh(FRESH, f, tmp_path/'x.safetensors')
    assert r.returncode==0 and r.stdout.strip()=='QLinear', r.stderr[-2000:]

# form -> codec, and whether the reader keeps it packed in float32
CT = dict(symint4=(SymInt(4,32),True), symint8=(SymInt(8,-1),True), symint3=(SymInt(3,16),True), int4=(Int(4,32),False),
          int8=(Int(8,-1),False), fp8=(Minifloat(4,3,-1,'fn'),True), nvfp4=(NVFP4(),False), mxfp4=(MX(),False))

@pytest.mark.skipif(find_spec('compressed_tensors') is None, reason='compressed-tensors is not installed')
@pytest.mark.parametrize('form', CT)
def test_compressed_tensors_gives_the_same_logits(form, tmp_path):
    from transformers import CompressedTensorsConfig
    codec, packed = CT[form]; q = small(codec); f = CompressedTensors(scales='float32').save(q, tmp_path)
    said = {} if packed else dict(quantization_config=CompressedTensorsConfig(dequantize=True))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(f, **said)), logits(q))

# form -> export and codec; `listed` has groups of sorted columns
V1, V2, AWQ = GPTQCheckpoint(), GPTQCheckpoint(2), AWQCheckpoint()
GPTQMODEL = dict(gptq4=(V1,Int(4,32)), gptq8=(V1,Int(8,-1)), gptq3=(V1,Int(3,32)), gptq2=(V1,SymInt(2,64)),
                 gptq_v2=(V2,Int(4,32)), listed=(V1,Int(4,32)), awq=(AWQ,Int(4,32)), awq_middle=(AWQ,SymInt(4,32)))

READ = '''import sys, torch; from transformers import AutoModelForCausalLM; from safetensors.torch import load_file
x = load_file(sys.argv[2]); torch.set_num_threads(1)
m = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float16)
for n,w in x.items():
    if n not in ('ids','logits'): assert torch.equal(m.get_submodule(n).dequantize_weight().T.half(), w.half()), n
print('apart', (m(x['ids']).logits.float()-x['logits']).abs().max().item())'''

def listed_groups(q): # every layer with groups of columns in a random order
    from dataclasses import replace
    from quantlab.export.grids import coded, grid_of
    for l in qlayers(q).values():
        order = torch.randperm(l.in_features, generator=gen(1)); back = order.argsort()
        g = grid_of(Int(4,32)(l.weight[:,order])); index = g.of_column()[back].int()
        l.coded = coded(replace(g, codes=g.codes[:,back], index=index, centred=False))
        l.dense = l.coded.decode()
    return q

@pytest.mark.skipif(not all(map(find_spec, ('gptqmodel','optimum'))), reason='gptqmodel is not installed')
@pytest.mark.parametrize('form', GPTQMODEL)
def test_gptqmodel_decodes_the_same_weights(form, tmp_path): # rounded once to float16, in which it computes
    from safetensors.torch import save_file
    e, codec = GPTQMODEL[form]; q = small(codec)
    if form=='listed': listed_groups(q)
    f = e.save(q, tmp_path/'q')
    weights = {n:l.weight.contiguous() for n,l in qlayers(q).items()}
    save_file(dict(weights, ids=IDS, logits=logits(q)), tmp_path/'x.safetensors')
    r = fresh(READ, f, tmp_path/'x.safetensors', GPTQMODEL_CPU_WORKERS='2', TORCHDYNAMO_DISABLE='1')
    assert r.returncode==0 and float(r.stdout.split('apart')[-1])<1e-3, r.stderr[-2000:]

# the same numbers in one format after the other

WAYS = {'gptq':GPTQCheckpoint(), 'awq':AWQCheckpoint(), 'compressed':CompressedTensors(), 'gguf':GGUF(), 'onnx':ONNX()}
ROUNDS = {'4 bits':(Int(4,32),WAYS), '4 bits, centred':(SymInt(4,32),WAYS), '4 bits, 64':(Int(4,64),WAYS),
          '8 bits, centred':(SymInt(8,32),WAYS.keys()-{'awq'})}

@pytest.mark.parametrize('name', ROUNDS)
def test_grids_go_from_every_format_to_every_other(name, tmp_path): # nothing is rounded on the way
    codec, ways = ROUNDS[name]; q = small(codec); want = logits(q)
    weights = {n:l.weight for n,l in qlayers(q).items()}
    if find_spec('onnxscript') is None: ways = set(ways)-{'onnx'}
    def through(m, n):
        e = WAYS[n]; back = e.load(e.save(m, tmp_path/(f'{n}.{n}' if n in ('gguf','onnx') else n)))
        assert all(torch.equal(l.weight,weights[k]) for k,l in qlayers(back).items()), n
        assert torch.equal(logits(back),want), n
        return back
    for a in sorted(ways):
        there = through(q, a)
        for b in sorted(ways): through(there, b)

def test_blocks_of_llama_cpp_that_are_no_grid_are_refused_in_a_line(tmp_path):
    f = save_gguf(small(Int(4,32)), tmp_path/'m.gguf', types='Q4_1')
    for e in (AWQCheckpoint(), GPTQCheckpoint(), CompressedTensors()):
        with pytest.raises(ValueError, match='smallest value is no whole number of steps') as said:
            e.save(load_gguf(f), tmp_path/'no')
        assert '\n' not in str(said.value) and not (tmp_path/'no').exists()

# damaged folders

@pytest.fixture(scope='module')
def folders(tmp_path_factory): # name -> folder and logits of what was written
    d, q = tmp_path_factory.mktemp('folders'), small(Int(4,32))
    return {n:e.save(q, d/n) for n,e in PATHS.items()}, logits(q)

def opened(name, f): # logits, or the one line with which the folder is refused
    try: return logits(PATHS[name].load(f))
    except (ValueError, OSError) as e: return str(e)

FILES = 'model.safetensors', 'config.json'

@pytest.mark.parametrize('name', PATHS)
@tries(25)
@given(data=st.data())
def test_damaged_files_are_refused_or_read(folders, name, data):
    f, want = folders[0][name], folders[1]
    with tempfile.TemporaryDirectory() as d:
        bad = shutil.copytree(f, Path(d)/'bad'); file = bad/data.draw(st.sampled_from(FILES))
        raw = bytearray(file.read_bytes()); n = len(raw)
        for _ in range(data.draw(st.integers(1,3))):
            raw[data.draw(st.integers(0, min(n,4096)-1))] = data.draw(st.integers(0,255))
        file.write_bytes(raw[:data.draw(st.sampled_from([n, n//2, 9]))]); out = opened(name, bad)
    assert isinstance(out,str) and len(out)<1000 or out.shape[:2]==want.shape[:2]

ODD = st.sampled_from([2**31, 2**40, 2**62, -1, 0]) | st.none() | st.text(max_size=3)

@pytest.mark.parametrize('name', ['compressed','gptq','awq'])
@tries(25)
@given(data=st.data())
def test_numbers_of_the_configuration_are_not_trusted(folders, name, data): # whatever it says of widths and groups
    f = folders[0][name]
    def other(v, k=''):
        if isinstance(v,dict): return {k:other(x,k) for k,x in v.items()}
        if k in ('num_bits','bits','group_size') and data.draw(st.booleans()): return data.draw(ODD)
        return v
    with tempfile.TemporaryDirectory() as d:
        bad = shutil.copytree(f, Path(d)/'bad'); cfg = json.loads((bad/'config.json').read_text())
        cfg['quantization_config'] = other(cfg['quantization_config']); (bad/'config.json').write_text(json.dumps(cfg))
        out = opened(name, bad)
    assert isinstance(out,str) and '\n' not in out or torch.equal(out, folders[1])

@pytest.mark.parametrize('name', PATHS)
def test_what_is_refused_leaves_nothing(name, tmp_path):
    model = tiny_llama(); model.model.norm.register_forward_hook(lambda *a: None)
    with pytest.raises(ValueError): PATHS[name].save(model, tmp_path/'no')
    assert not (tmp_path/'no').exists()

# the matrix of methods and formats

def test_no_format_returns_other_weights(): # among the cells that are recorded
    rows = [json.loads(l) for l in (settings().data/'exports.jsonl').read_text('utf8').splitlines()]
    wrong = [(r['source'],r['export']) for r in rows if r['verdict']=='wrong']
    assert rows and not wrong, f'written, but read back differently: {wrong}'

def test_every_file_was_read_by_a_program_of_others(): # but for the folders that no other program knows
    rows = [json.loads(l) for l in (settings().data/'exports.jsonl').read_text('utf8').splitlines()]
    unread = [(r['source'],r['export']) for r in rows if r['verdict']=='written' and not r['reader']]
    assert not [u for u in unread if u[1] not in ALONE], 'record them where gptqmodel and the others are installed'

def test_readme_says_what_is_recorded():
    from quantlab.recipes.index import MARKS, with_formats
    text = (Path(__file__).resolve().parents[1]/'README.md').read_text('utf8')
    assert all(m in text for m in MARKS), 'the marks of the table are gone'
    assert with_formats(text)==text, 'run quantlab index'

"""Files that onnxruntime runs; and files that nobody should have written."""
import copy, json, resource, subprocess, sys, tempfile
from hashlib import sha256
from pathlib import Path
import pytest, torch
from hypothesis import given, strategies as st
for needed in ('onnx', 'onnxscript', 'onnxruntime'): pytest.importorskip(needed)
import onnx
from quantlab.core.method import gen
from quantlab.core.pipe import pipe, qlayers, quantize
from quantlab.core.qlayer import Static, qlayer
from quantlab.core.testbed import tiny_llama
from quantlab.core.walk import matrix
from quantlab.export import onnx as ours
from quantlab.export.matrix import by_onnxruntime
from quantlab.export.onnx import ONNX, answers_of, filled, session
from quantlab.export.reading import read_model, written_as
from quantlab.formats.int import Int, SymInt
from quantlab.formats.nf import NF
from quantlab.ptq.pd_quant import Part
from quantlab.ptq.rtn import RTN
from quantlab.testbeds.images import Scene, held, pictures
from quantlab.testbeds.vision import answers, matrices, resnet, vit
from test_properties import tries

# name -> codec of weights, quantizer of inputs, and how far logits may be apart, over the largest one. Sums in float32
# in another order give some 1e-6; a rounded input that lies between two levels may fall to the other side and be off by
# a whole step
FORMS = dict(float=(None,None,1e-5), rows8=(Int(8,-1),None,1e-5), centred8=(SymInt(8,-1),None,1e-5),
             groups4=(Int(4,32),None,1e-5), centred4=(SymInt(4,32),None,1e-5), groups2=(Int(2,32),None,1e-5),
             inputs8=(Int(8,-1),Static(Int(8,0)),.05), centred_inputs8=(Int(8,-1),Static(SymInt(8,0)),.05))

@pytest.fixture(scope='module')
def beds(): return dict(resnet=resnet(), vit=vit()), held(200)[0], pictures(24, Scene(), gen(5))[0]

def quantized(net, seen, codec, act): # the layers of its blocks
    if codec is None: return net
    if act is not None: return pipe(Part(net), [seen], quantize(RTN(codec), act=act)).net
    new = copy.deepcopy(net)
    for n,l in matrices(net).items(): new.set_submodule(n, qlayer(l, codec(matrix(l))))
    return new

BOTH = [*(('resnet',f) for f in FORMS if f!='float'), *(('vit',f) for f in ('float','centred8','groups4','inputs8'))]

@pytest.mark.parametrize('name,form', BOTH)
def test_onnxruntime_answers_as_torch_does(beds, name, form, tmp_path):
    nets, x, seen = beds; codec, act, allowed = FORMS[form]
    q = quantized(nets[name], seen, codec, act); f = ONNX().save(q, tmp_path/'q.onnx')
    onnx.checker.check_model(str(f), full_check=True)
    want, y = answers(q, x), answers_of(session(f), x)
    assert (y-want).abs().max()<=allowed*want.abs().max() and torch.equal(y.argmax(1), want.argmax(1))
    back = ONNX().load(f)
    assert torch.equal(answers(back, x[:8]), answers(q, x[:8]))
    assert sum(l.q.bits for l in qlayers(back).values())==sum(l.q.bits for l in qlayers(q).values())

@pytest.mark.parametrize('form', ['rows8','centred4','groups2'])
def test_codes_of_the_file_are_those_of_the_layers(beds, form):
    nets, _, seen = beds; q = quantized(nets['vit'], seen, *FORMS[form][:2])
    file = {t.name:t for t in filled(q).graph.initializer}
    for n,l in qlayers(q).items():
        b, codes = l.q.width['codes'], l.q.parts['codes'].reshape(-1).int()
        if form=='centred4': codes = (codes-8) & 15 # two's complement
        raw = torch.tensor(bytearray(file[f'{n}.weight.codes'].raw_data), dtype=torch.uint8).int()
        assert torch.equal(((raw[:,None]>>torch.arange(0,8,b)) & (2**b-1)).reshape(-1), codes)

def small(codec, act=None, **config): # a language model
    ids = torch.randint(0, 97, (2,24), generator=gen(0))
    return pipe(tiny_llama(hidden_size=64, intermediate_size=128, **config), [ids], quantize(RTN(codec), act=act))

def test_language_models_of_any_length(tmp_path): # and one tensor for the first and the last layer
    q = small(Int(4,32), tie_word_embeddings=True); f = ONNX().save(q, tmp_path/'q.onnx'); run = session(f)
    for n,t in ((1,1), (1,7), (3,40)):
        ids = torch.randint(0, 97, (n,t), generator=gen(t))
        with torch.no_grad(): want, back = q(ids).logits, ONNX().load(f)(ids).logits
        assert torch.equal(back, want) and (answers_of(run, ids)-want).abs().max()<=1e-5*want.abs().max()

CODECS = [Int(2,32), Int(4,32), Int(4,-1), Int(8,-1), SymInt(4,32), SymInt(8,32), SymInt(2,0)]

@pytest.mark.parametrize('codec', CODECS, ids=str)
def test_onnxruntime_decodes_the_same_weights(codec, tmp_path):
    q = small(codec); f = ONNX().save(q, tmp_path/'q.onnx'); found = by_onnxruntime(f, q)
    assert found.keys()==qlayers(q).keys() and all(torch.equal(found[n],l.weight) for n,l in qlayers(q).items())
    m = onnx.load(f); t = next(t for t in m.graph.initializer if t.name.endswith('.up_proj.weight.codes'))
    t.raw_data = bytes([t.raw_data[0]^1])+t.raw_data[1:]; onnx.save(m, tmp_path/'other.onnx') # one code changes
    other = by_onnxruntime(tmp_path/'other.onnx', q)
    assert not other or not all(torch.equal(other[n],l.weight) for n,l in qlayers(q).items())

def test_a_file_is_opened_by_its_name(tmp_path):
    q = small(SymInt(4,32)); f = ONNX().save(q, tmp_path/'q.onnx'); ids = torch.arange(8)[None]
    assert written_as(f)=='onnx'
    with torch.no_grad(): assert torch.equal(read_model(f)(ids).logits, q(ids).logits)

ALONE = '''import sys; from hashlib import sha256
from quantlab.export.onnx import filled; from quantlab.testbeds.vision import resnet
print(sha256(filled(resnet()).SerializeToString(deterministic=True)).hexdigest())'''

def test_another_process_writes_the_same_bytes(beds):
    r = subprocess.run([sys.executable,'-c',ALONE], capture_output=True, text=True)
    mine = sha256(filled(beds[0]['resnet']).SerializeToString(deterministic=True)).hexdigest()
    assert r.stdout.strip()==mine, r.stderr[-2000:]

# refused

REFUSED = dict(bits=(Int(3,32),None,'3 bits; ONNX holds'), levels=(NF(4,32),None,'is no grid of integers'),
               tokens=(Int(4,32),Int(8,-1),'found at every call'), channels=(Int(4,32),Static(Int(8,1)),'ranges'))

@pytest.mark.parametrize('name', REFUSED)
def test_what_is_refused_is_refused_at_once_and_leaves_nothing(name, tmp_path, monkeypatch):
    codec, act, said = REFUSED[name]
    def never(config): raise AssertionError('traced before it was refused')
    monkeypatch.setattr(ours, 'traced', never)
    with pytest.raises(ValueError, match=said) as e: ONNX().save(small(codec, act), tmp_path/'no'/'q.onnx')
    assert str(e.value).startswith('model.layers.0.') and '\n' not in str(e.value) and not (tmp_path/'no').exists()

@pytest.mark.parametrize('name', ['onnx','onnxscript.optimizer'])
def test_a_missing_package_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None); ours.traced.cache_clear()
    with pytest.raises(ValueError, match='pip install onnx onnxscript'): filled(resnet())

# damaged

@pytest.fixture(scope='module')
def whole(beds, tmp_path_factory):
    nets, x, seen = beds; q = quantized(nets['resnet'], seen, Int(4,32), Static(Int(8,0)))
    return ONNX().save(q, tmp_path_factory.mktemp('onnx')/'q.onnx').read_bytes(), x[:2]

def read(raw, x): # logits, or the one line with which the file is refused
    with tempfile.TemporaryDirectory() as d:
        f = Path(d)/'bad.onnx'; f.write_bytes(raw)
        try: return answers(ONNX().load(f), x)
        except ValueError as e: return str(e)

@tries(40)
@given(data=st.data())
def test_damaged_files_are_refused_or_read(whole, data):
    raw, x = bytearray(whole[0]), whole[1]; n = len(raw)
    for _ in range(data.draw(st.integers(1,3))): # names and sizes lie at the beginning and at the end
        k = data.draw(st.integers(0,4095)); raw[data.draw(st.sampled_from([k,n-1-k]))] = data.draw(st.integers(0,255))
    out = read(raw[:data.draw(st.sampled_from([n, n//2, 9]))], x)
    assert isinstance(out,str) and len(out)<1000 and '\n' not in out or out.shape==(2,12)

@tries(40)
@given(data=st.data())
def test_fields_of_tensors_are_not_trusted(whole, data): # whatever is said of their shapes and types
    m = onnx.load_model_from_string(whole[0]); names = [t for t in m.graph.initializer if '.' in t.name]
    t = data.draw(st.sampled_from(names)); field = data.draw(st.sampled_from(['dims','data_type','raw_data','name']))
    sizes = st.lists(st.sampled_from([0,1,-1,7,288,2**31,2**62]), max_size=4)
    if field=='dims': del t.dims[:]; t.dims.extend(data.draw(sizes))
    elif field=='data_type': t.data_type = data.draw(st.integers(0,30))
    else: setattr(t, field, b'' if field=='raw_data' else 'other')
    out = read(m.SerializeToString(), whole[1])
    assert isinstance(out,str) and len(out)<1000 and '\n' not in out or out.shape==(2,12)

@pytest.fixture(scope='module')
def language(tmp_path_factory):
    return ONNX().save(small(Int(4,32)), tmp_path_factory.mktemp('onnx')/'q.onnx').read_bytes()

ODD = [0, 1, -1, 3, 10**4, 2**31, 2**40, 2**62, 2**64, .5, True, None, 'x', [], [2**40], {}]

@tries(60)
@given(data=st.data())
def test_numbers_of_the_note_are_not_trusted(whole, language, data): # nor is memory taken that the file has no use for
    raw, x = data.draw(st.sampled_from([whole, (language, torch.arange(8)[None])]))
    m = onnx.load_model_from_string(raw); note = json.loads(m.metadata_props[0].value)
    for k in data.draw(st.lists(st.sampled_from(sorted(note['config'])), min_size=1, max_size=3)):
        note['config'][k] = data.draw(st.sampled_from(ODD))
    m.metadata_props[0].value = json.dumps(note); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as d:
        f = Path(d)/'bad.onnx'; f.write_bytes(m.SerializeToString())
        try: out = sum(p.numel() for p in ONNX().load(f).parameters())
        except ValueError as e: out = str(e)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before<2**18, 'memory was taken for it'
    assert isinstance(out,int) or len(out)<1000 and '\n' not in out and 'bad.onnx' in out

"""GGUF: every block format against another reader, models through a file, and files that want to do harm."""
import json, math, resource, struct, tempfile
from pathlib import Path
import gguf, numpy as np, pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from quantlab.core.method import gen, near
from quantlab.core.pipe import pipe, qlayers, quantize
from quantlab.core.qtensor import load, save
from quantlab.core.testbed import tiny_llama
from quantlab.export.gguf import load_gguf, save_gguf
from quantlab.export.gguf_blocks import FORMS, PLAIN, decode_blocks, pack_block, row_bytes, unpack_block
from quantlab.export.gguf_file import read_gguf, write_gguf
from quantlab.export.gguf_fit import Block, block_codes, block_error, encode_blocks, fit_block
from quantlab.export.gguf_rope import NOTE, RULE, TABLE, rope_factors
from quantlab.export.gguf_tokens import piece_scores
from quantlab.export.gguf_transcode import on_grid, transcoded
from quantlab.formats.blocks import MX
from quantlab.formats.int import Int, SymInt
from quantlab.formats.signs import Binary, Ternary
from quantlab.ptq.gptq import GPTQ
from quantlab.ptq.rtn import RTN

HOME = tempfile.TemporaryDirectory() # what hypothesis wants to remember is forgotten at the end
set_hypothesis_home_dir(HOME.name)
RULED = 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q8_0', 'TQ1_0', 'TQ2_0', 'MXFP4' # the gguf package has encoders of these
formats = pytest.mark.parametrize('name', FORMS)

def tries(n): # the same examples in every run, and no folder of examples
    return settings(max_examples=n, deadline=None, derandomize=True, database=None,
                    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

def theirs(b, name): # numbers that the gguf package finds in rows of bytes
    with np.errstate(all='ignore'): return gguf.quants.dequantize(b.numpy(), getattr(gguf.GGMLQuantizationType,name))

def noise(shape, seed=0): return torch.randn(shape, generator=gen(seed))

# blocks

@formats
def test_random_bytes_are_read_as_others_read_them(name):
    f = FORMS[name]
    for seed in range(3): # where a scale is infinite or no number nothing is said; all else is compared bit for bit
        b = torch.randint(0, 256, (3000,len(f.layout)), generator=gen(seed), dtype=torch.uint8)
        mine, other = decode_blocks(b,name).numpy(), theirs(b,name)
        bad = np.isnan(other); assert np.array_equal(np.isnan(mine), bad), name
        assert np.array_equal(mine.view(np.uint32)[~bad], other.view(np.uint32)[~bad]), name

@formats
def test_each_bit_of_a_block_counts(name): # one bit changed, another number or the same by two codes of one value
    f = FORMS[name]; b = torch.zeros(1, len(f.layout), dtype=torch.uint8)
    p = {k:torch.full_like(c,{'d':0x3c00,'m':0x3c00,'q':2}.get(k,1)) for k,c in unpack_block(b,f).items()}
    b = pack_block(p, f); flipped = b.repeat(8*b.shape[1],1)
    for k in range(len(flipped)): flipped[k,k//8] ^= 1<<k%8
    same = (decode_blocks(flipped,name)==decode_blocks(b,name)).all(1).nonzero().flatten().tolist()
    assert name=='TQ1_0' or not same, f'bits {same[:8]} say nothing'

@formats
@tries(20)
@given(seed=st.integers(0,99), scale=st.sampled_from((1e-6,1e-2,1.,1e3)))
def test_codes_are_the_nearest_and_scales_no_worse_than_a_rule(name, seed, scale):
    f = FORMS[name]; x = noise((32,f.size),seed)*scale; w = torch.ones_like(x); p = fit_block(x, w, f)
    b = pack_block(dict(p,q=block_codes(x,p,f)), f); near(encode_blocks(x,name), b, 0, 0)
    y = torch.tensor(theirs(b,name)); near(y, decode_blocks(b,name), 0, 0)
    e = block_error(x,w,p,f); near((x-y).square().sum(1,keepdim=True), e, 1e-4, 1e-12)
    if name not in RULED or scale<1e-5: return
    b = torch.tensor(gguf.quants.quantize(x.numpy(), getattr(gguf.GGMLQuantizationType,name)))
    rule = torch.tensor(theirs(b,name))
    assert e.sum()<=(x-rule).square().sum()*1.0001+1e-12

AWKWARD = dict(zeros=lambda x: 0*x, constant=lambda x: 0*x-3, positive=lambda x: x.abs()+1, huge=lambda x: x*1e30,
               subnormal=lambda x: x*1e-42, one=lambda x: torch.zeros_like(x).index_fill(1,torch.tensor([7]),5.))

@formats
@pytest.mark.parametrize('case', AWKWARD)
def test_awkward_numbers_stay_numbers(name, case):
    x = AWKWARD[case](noise((3,FORMS[name].size))); y = Block(name)(x).decode()
    assert torch.isfinite(y).all() and y.abs().max()<=1.2*x.abs().max()+1e-7
    if case in ('constant','positive','one'): assert (x-y).norm()<.5*x.norm(), case

@formats
def test_weights_move_the_error_where_it_does_not_matter(name):
    x, w = noise((64,FORMS[name].size)), torch.ones(1,FORMS[name].size); w[:,::2] = 30.
    if name=='Q8_0': pytest.skip('one range is tried: eight bits leave nothing to choose')
    def loss(v): return ((decode_blocks(encode_blocks(x,name,v),name)-x).square()*w).sum()
    assert loss(w)<=loss(None)

# taken over

GRIDS = [SymInt(b,g) for b in (2,3,4,5,8) for g in (32,64,-1,0)]+[Int(b,g) for b in (2,3,4,7) for g in (32,128,-1)]
GRIDS += [MX(), MX(group=64), Ternary(256), Ternary(32), Binary(64)]

@pytest.mark.parametrize('codec', GRIDS, ids=str)
def test_grids_are_taken_over_to_the_last_bit(codec):
    q = codec(noise((6,512),3)); t = transcoded(q); near(t.decode(), q.decode(), 0, 0)
    near(torch.tensor(theirs(t.parts['blocks'],t.meta['kind'])), q.decode(), 0, 0)

@pytest.mark.parametrize('codec', (SymInt(4,32),Int(3,64),MX()), ids=str)
def test_error_feedback_survives(codec): # codes that are not the nearest, through a file
    m = tiny_llama(hidden_size=64, intermediate_size=128); ids = [torch.randint(0,97,(2,24),generator=gen(0))]
    q = pipe(m, ids, quantize(GPTQ(codec)))
    with tempfile.TemporaryDirectory() as d:
        for t in gguf.GGUFReader(save_gguf(q,Path(d)/'m.gguf')).tensors:
            if not t.name.endswith('ffn_down.weight'): continue
            W = q.model.layers[int(t.name.split('.')[1])].mlp.down_proj.weight
            near(torch.tensor(gguf.quants.dequantize(t.data,t.tensor_type)), W, 0, 0)

def test_blocks_in_safetensors(tmp_path): # as any coded tensor
    q = {k:Block(k)(noise((4,256))) for k in FORMS}; back = load(save(q, tmp_path/'t.safetensors'))[0]
    for k in FORMS: near(back[k].decode(), q[k].decode(), 0, 0); assert back[k].bits==q[k].bits==8*4*row_bytes(256,k)

# models

def small(**kw): return tiny_llama(**{**dict(hidden_size=64, intermediate_size=128), **kw})
def logits(m):
    with torch.no_grad(): return m(torch.arange(8)[None]).logits

@pytest.mark.parametrize('kind', ('F32','Q4_0','Q4_1','Q5_0','Q5_1','Q8_0','IQ4_NL','MXFP4'))
def test_a_type_is_what_the_codec_of_that_name_does(tmp_path, kind):
    m = small(attention_bias=True, head_dim=32); back = load_gguf(save_gguf(m, tmp_path/'m.gguf', types=kind))
    if kind=='F32': near(logits(back), logits(m), 0, 0); return
    q = pipe(m, [torch.arange(8)[None]], quantize(RTN(Block(kind))))
    near(logits(back), logits(q), 0, 0); assert {l.q.meta['kind'] for l in qlayers(back).values()}=={kind}

def test_written_twice_is_the_same(tmp_path):
    a, b = (save_gguf(small(), tmp_path/f'{k}.gguf', types={'*mlp*':'Q4_0','*':'Q8_0'}).read_bytes() for k in 'ab')
    assert a==b

# damaged files

@pytest.fixture(scope='module')
def good():
    with tempfile.TemporaryDirectory() as d:
        p = save_gguf(tiny_llama(num_hidden_layers=1), Path(d)/'m.gguf', types={'*.o_proj':'Q8_0','*.v_proj':'Q4_0'})
        yield p.read_bytes()

def header(good): return len(good)-sum(-(-t.nbytes//32)*32 for t in _tensors(good))
def _tensors(b):
    with tempfile.TemporaryDirectory() as d:
        (Path(d)/'m').write_bytes(b); return [np.array(t.data) for t in gguf.GGUFReader(Path(d)/'m').tensors]

def refusal(b, folder): # None if the file is read, else the message: one line that names the file
    p = folder/'bad.gguf'; p.write_bytes(b); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try: load_gguf(p)
    except ValueError as e: why = str(e)
    else: why = None
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before
    assert grown<2**17, f'{grown} KB were taken for a file of {len(b)} bytes'
    assert why is None or '\n' not in why and 'bad.gguf' in why and len(why)<600, why
    return why

def test_the_good_file_is_read(good, tmp_path): assert refusal(good, tmp_path) is None

@tries(120)
@given(at=st.floats(0,1,exclude_max=True))
def test_a_file_cut_anywhere_is_refused(good, tmp_path, at): assert refusal(good[:int(at*len(good))], tmp_path)

def test_a_header_cut_anywhere_is_refused(good, tmp_path):
    for n in range(0, header(good), 7): assert refusal(good[:n], tmp_path), n

@tries(300)
@given(flips=st.lists(st.tuples(st.floats(0,1,exclude_max=True),st.integers(0,7)), min_size=1, max_size=4))
def test_flipped_bits_of_the_header_never_crash(good, tmp_path, flips):
    b, n = bytearray(good), header(good)
    for at,k in flips: b[int(at*n)] ^= 1<<k
    refusal(bytes(b), tmp_path) # a name of the model may change; what is refused is refused in one line

@tries(300)
@given(at=st.floats(0,1,exclude_max=True), v=st.sampled_from((0,1,2**31,2**32-1,2**63,2**64-1,10**15,2**40)))
def test_numbers_in_the_header_never_crash(good, tmp_path, at, v):
    n = int(at*(header(good)-8)); refusal(good[:n]+struct.pack('<Q',v)+good[n+8:], tmp_path)

FIELDS = dict(version=(4,'<I',4), old=(4,'<I',1), other_end=(4,'>I',3), no_tensors=(8,'<Q',0), tensors=(8,'<Q',2**63),
              one_less=(8,'<Q',10), facts=(16,'<Q',2**63), one_fact=(16,'<Q',1))

@pytest.mark.parametrize('name', FIELDS)
def test_counts_of_the_header(good, tmp_path, name):
    at, kind, v = FIELDS[name]; assert refusal(good[:at]+struct.pack(kind,v)+good[at+struct.calcsize(kind):], tmp_path)

def entry(good, name): # behind the name of a tensor: axes, sizes, type, offset
    k = struct.pack('<Q',len(name))+name.encode(); assert good.count(k)==1
    at = good.index(k)+len(k); axes, = struct.unpack_from('<I', good, at); return at, at+4, at+4+8*axes, at+8+8*axes

ENTRY = dict(axes=(0,'<I',0), many_axes=(0,'<I',2**31), columns=(1,'<Q',31), huge=(1,'<Q',2**62), zero=(1,'<Q',0),
             type=(2,'<I',4), unknown=(2,'<I',999), wider=(2,'<I',1), overlap=(3,'<Q',0), beyond=(3,'<Q',2**62),
             wraps=(3,'<Q',2**64-32), crooked=(3,'<Q',33))

@pytest.mark.parametrize('name', ENTRY)
def test_entries_of_tensors(good, tmp_path, name):
    place, kind, v = ENTRY[name]; at = entry(good,'blk.0.attn_v.weight')[place]
    assert refusal(good[:at]+struct.pack(kind,v)+good[at+struct.calcsize(kind):], tmp_path)

def test_what_lies_behind_is_refused(good, tmp_path): assert 'behind' in refusal(good+bytes(4096), tmp_path)

def test_nothing_at_all(tmp_path):
    assert 'empty' in refusal(b'', tmp_path)
    with pytest.raises(FileNotFoundError, match='none.gguf'): load_gguf(tmp_path/'none.gguf')
    assert refusal(bytes(100), tmp_path) and refusal(b'GGUF', tmp_path) and refusal(b'PK\x03\x04'+bytes(60), tmp_path)

FACTS = st.one_of(st.integers(0,2**32-1), st.text(max_size=9), st.booleans(), st.floats(width=32,allow_nan=False),
                  *(st.lists(e, min_size=1, max_size=5) for e in (st.integers(0,2**31-1), st.text(max_size=5))))
KEYS = st.text(st.characters(min_codepoint=33,max_codepoint=126), min_size=1, max_size=12)

@tries(100)
@given(facts=st.dictionaries(KEYS, FACTS, max_size=6))
def test_facts_come_back(tmp_path, facts):
    facts.pop('general.alignment', None); x = noise((2,3)); p = write_gguf(tmp_path/'f.gguf', facts, dict(x=x))
    got, ts = read_gguf(p); assert got==facts and torch.equal(ts['x'], x)
    said = {k:f.contents() for k,f in gguf.GGUFReader(p).fields.items() if not k.startswith('GGUF.')}
    assert said=={k:v for k,v in facts.items()}

ARCH = {'block_count':(0,2,10**6,2**32-1), 'embedding_length':(0,31,33,2**31), 'feed_forward_length':(0,47,2**32-1),
        'attention.head_count':(0,3,8,2**31), 'attention.head_count_kv':(0,3,4,2**31),
        'attention.key_length':(0,7,16,2**31), 'context_length':(0,), 'rope.freq_base':(0.,'x',math.inf),
        'attention.layer_norm_rms_epsilon':(1,'x',math.inf), 'rope.scaling.type':('linear','yarn')}

@pytest.mark.parametrize('key', ARCH)
def test_impossible_configurations(good, tmp_path, key):
    (tmp_path/'m').write_bytes(good); facts, ts = read_gguf(tmp_path/'m')
    for v in ARCH[key]:
        assert refusal(write_gguf(tmp_path/'b', {**facts,f'llama.{key}':v}, ts).read_bytes(), tmp_path), v
    if key not in ('attention.key_length','attention.head_count_kv','rope.freq_base','rope.scaling.type'):
        less = {k:v for k,v in facts.items() if k!=f'llama.{key}'}
        assert key.split('.')[-1] in refusal(write_gguf(tmp_path/'b', less, ts).read_bytes(), tmp_path)

# scaled positions

LLAMA3 = dict(rope_type='llama3', rope_theta=1e4, factor=8., low_freq_factor=1., high_freq_factor=4.,
              original_max_position_embeddings=32)

@pytest.fixture(scope='module')
def stretched(tmp_path_factory):
    m = tiny_llama(num_hidden_layers=1, head_dim=32, rope_parameters=LLAMA3)
    return m, save_gguf(m, tmp_path_factory.mktemp('rope')/'m.gguf')

def test_divisors_of_frequencies_are_those_of_the_converter(stretched): # three cases, as they are published
    m, p = stretched; d = 32; found = next(t for t in gguf.GGUFReader(p).tensors if t.name==TABLE).data
    f, low, high, old = (LLAMA3[k] for k in RULE); want = []
    for k in range(0,d,2):
        wave = 2*math.pi*1e4**(k/d); share = (old/wave-low)/(high-low)
        want.append(1 if wave<old/high else f if wave>old/low else 1/((1-share)/f+share))
    assert np.allclose(found, want, 1e-6) and found.dtype==np.float32 and {1.,8.}<set(found.tolist())
    back = load_gguf(p); near(logits(back), logits(m), 0, 0); assert back.config.rope_parameters==LLAMA3

ODD = st.sampled_from((0, -1, 1, .5, 2**40, 10**30, 1e300, math.nan, math.inf, True, None, 'x', [1], {}))

@tries(80)
@given(data=st.data())
def test_tables_and_notes_of_positions_are_not_trusted(stretched, tmp_path, data):
    facts, ts = read_gguf(stretched[1]); note, t = json.loads(facts[NOTE]), ts[TABLE].clone()
    what = data.draw(st.sampled_from(('note','text','none','values','size','kind')))
    if what=='note': facts[NOTE] = json.dumps(note|data.draw(st.dictionaries(st.sampled_from(RULE), ODD, min_size=1)))
    if what=='text': facts[NOTE] = data.draw(st.text(max_size=20) | st.integers(0,9) | st.just('['*5000))
    if what=='none': del facts[NOTE]
    if what=='values': t[data.draw(st.integers(0,15))] = data.draw(st.floats(width=32))
    if what=='size': t = torch.ones(data.draw(st.integers(1,40)))
    if what=='kind': t = data.draw(st.sampled_from((t.half(), t.reshape(4,4), Block('Q8_0')(t.repeat(2)[None]))))
    p = write_gguf(tmp_path/'b', facts, {**ts,TABLE:t})
    if refusal(p.read_bytes(), tmp_path) is None: # the rule that was read gives the table
        rope = load_gguf(p).config.rope_parameters
        got = rope_factors(rope,32,1e4) if rope['rope_type']=='llama3' else torch.ones(16)*rope['factor']
        near(got, t.float(), 1e-4, 0)

@pytest.mark.parametrize('rope', (dict(rope_type='yarn',factor=4.), dict(rope_type='dynamic',factor=4.)))
def test_rules_without_words_are_refused_and_leave_nothing(tmp_path, rope):
    m = tiny_llama(rope_parameters=dict(rope,rope_theta=1e4))
    with pytest.raises(ValueError, match=f"scaled by the rule '{rope['rope_type']}'") as e: save_gguf(m, tmp_path/'no')
    assert '\n' not in str(e.value) and not (tmp_path/'no').exists()

# scores of sentence pieces

@tries(60)
@given(data=st.data())
def test_scores_merge_as_pairs_do(data): # or they are refused
    from tokenizers import Tokenizer, models
    letters = 'abc'; words = st.text(letters, min_size=2, max_size=4)
    made = list(dict.fromkeys(data.draw(st.lists(words, max_size=8))))
    ids = {t:k for k,t in enumerate((*letters,*made))}
    pairs = [(t[:k],t[k:]) for t in made for k in range(1,len(t)) if {t[:k],t[k:]}<=ids.keys()]
    if data.draw(st.booleans()): pairs = data.draw(st.permutations(pairs))
    try: score = piece_scores(dict(vocab=ids, merges=[' '.join(p) for p in pairs]), set())
    except ValueError as e: assert '\n' not in str(e); return
    s = list(data.draw(st.text(letters, min_size=1, max_size=12))); text = ''.join(s)
    while at:=[(score[a+b],-k) for k,(a,b) in enumerate(zip(s,s[1:])) if a+b in score]:
        k = -max(at)[1]; s[k:k+2] = [s[k]+s[k+1]]
    assert s==Tokenizer(models.BPE(ids, pairs)).encode(text).tokens

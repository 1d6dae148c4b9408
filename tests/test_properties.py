"""What must hold for every input, tried on many: packing, files, allocation, formats, statistics, damaged files."""
import itertools, json, math, resource, struct, tempfile, time
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
import pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from quantlab.mixed.alloc import greedy, knapsack, lagrangian, lower_bound, tally
from quantlab.core.grid import groups, pack, unpack
from quantlab.core.method import gen, methods, near
from quantlab.core.qtensor import QTensor, load, load_note, pack_codes, pack_parts, save, stored_bits, unpack_codes
from quantlab.core.stats import stats_of

HOME = tempfile.TemporaryDirectory() # what hypothesis wants to remember is forgotten at the end
set_hypothesis_home_dir(HOME.name)

def tries(n): # the same examples in every run, and no folder of examples
    return settings(max_examples=n, deadline=None, derandomize=True, database=None,
                    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

# packing

WIDTHED = st.integers(1,32).flatmap(lambda w: st.tuples(st.just(w), st.lists(st.integers(0,2**w-1), max_size=70)))

def stream(codes, width): # the bytes, by arithmetic on one long integer
    if width>8: return stream([c & 255 for c in codes], 8)+stream([c>>8 for c in codes], width-8)
    return sum(c<<k*width for k,c in enumerate(codes)).to_bytes(-(-len(codes)*width//8), 'little')

@tries(300)
@given(WIDTHED)
def test_codes_of_any_width_come_back(case):
    w, c = case; t = torch.tensor(c, dtype=torch.int64); b = pack(t, w)
    assert bytes(b.tolist())==stream(c, w) and unpack(b, w, len(c)).tolist()==c
    assert torch.equal(pack_codes(t,w), b) and torch.equal(unpack_codes(b,w,(len(c),),torch.int64), t)
    for bad in (2**w, -1):
        with pytest.raises(ValueError, match='do not fit'): pack(torch.tensor([*c,bad]), w)
    with pytest.raises(ValueError, match='are needed'): unpack(torch.cat([b,b.new_zeros(1)]), w, len(c))

@pytest.mark.parametrize('extra', (-1,0,1,9))
def test_long_runs_of_codes_come_back(extra): # packed a million at a time
    t = torch.randint(0, 8, ((1<<20)+extra,), generator=gen(0), dtype=torch.uint8); b = pack_codes(t, 3)
    assert torch.equal(b, pack(t.long(),3)) and torch.equal(unpack_codes(b,3,tuple(t.shape),torch.uint8), t)

# coded tensors in files

INTS = 'uint8', 'int8', 'int16', 'int32', 'int64'
FLOATS = 'float16', 'bfloat16', 'float32', 'float64', 'float8_e4m3fn', 'float8_e5m2'
SHAPES = st.lists(st.integers(0,5), max_size=4).map(tuple)

def of(t): return str(t.dtype), tuple(t.shape), bytes(t.contiguous().reshape(-1).view(torch.uint8).tolist())

@st.composite
def parts(draw): # (tensor, width)
    kind, shape, g = draw(st.sampled_from((*INTS,*FLOATS,'bool'))), draw(SHAPES), gen(draw(st.integers(0,99)))
    dtype = getattr(torch, kind)
    if kind=='bool': return torch.randint(0, 2, shape, generator=g).bool(), 1
    if kind in FLOATS: # NaN and infinity included
        raw = torch.randint(0, 256, (math.prod(shape)*dtype.itemsize,), generator=g, dtype=torch.uint8)
        return raw.view(dtype).reshape(shape), 8*dtype.itemsize
    width = draw(st.integers(1,32))
    return torch.randint(0, 2**min(width,8*dtype.itemsize-(kind!='uint8')), shape, generator=g).to(dtype), width

LETTERS = st.characters(exclude_categories=('Cs',), exclude_characters='._')
NAMES = st.text(LETTERS, min_size=1, max_size=6)
NUMBERS = st.one_of(st.integers(-9,9), st.floats(allow_nan=False,allow_infinity=False), NAMES)

@st.composite
def coded(draw):
    ps = draw(st.dictionaries(NAMES, parts(), min_size=1, max_size=3))
    tensors, widths = ({k:p[j] for k,p in ps.items()} for j in (0,1))
    meta = draw(st.dictionaries(NAMES, NUMBERS, max_size=2))
    return QTensor(tensors, widths, 'a.b', meta, draw(SHAPES))

@tries(80)
@given(st.dictionaries(NAMES, coded(), max_size=3), st.dictionaries(NAMES.map('p'.__add__), parts(), max_size=2))
def test_coded_tensors_come_back(tmp_path, coded, plain):
    plain = {k:t for k,(t,_) in plain.items() if k not in coded}
    back, note = load(save({**coded,**plain}, tmp_path/'t.safetensors', dict(a=[1,None])))
    assert note==dict(a=[1,None]) and back.keys()==coded.keys()|plain.keys()
    assert all(of(back[k])==of(t) for k,t in plain.items())
    for k,q in coded.items():
        assert (back[k].width,back[k].fmt,back[k].meta,back[k].shape)==(q.width,q.fmt,q.meta,q.shape)
        assert {p:of(t) for p,t in back[k].parts.items()}=={p:of(t) for p,t in q.parts.items()}
        assert q.bits==sum(t.numel()*q.width[p] for p,t in q.parts.items())
        for p,b in pack_parts(q).items(): assert len(b)==-(-q.parts[p].numel()*q.width[p]//8)
    assert stored_bits([*coded.values()]*2)==sum(q.bits for q in coded.values())

def test_shared_parts_are_stored_once(tmp_path):
    book = noise((64,8), 0)
    qs = {f'q{k}':QTensor(dict(book=book),dict(book=32),'a.b',{},(4,)) for k in range(3)}
    back = load(save(qs, tmp_path/'t.safetensors'))[0]
    assert stored_bits(qs.values())==stored_bits(back.values())==qs['q0'].bits
    assert (tmp_path/'t.safetensors').stat().st_size<2*qs['q0'].bits//8

# allocation

@st.composite
def tables(draw): # cost, bits, budget that the smallest choices fit
    l, k = draw(st.integers(1,4)), draw(st.integers(1,4)); cells = dict(min_size=l*k, max_size=l*k)
    cost = torch.tensor(draw(st.lists(st.integers(-50,50), **cells))).reshape(l,k)/draw(st.sampled_from((1.,3.,7.)))
    bits = torch.tensor(draw(st.lists(st.integers(1,30), **cells))).reshape(l,k)
    least, most = bits.amin(1).sum().item(), bits.amax(1).sum().item()
    return cost, bits, draw(st.integers(least, most+3))

@tries(250)
@given(tables())
def test_knapsack_is_the_best_of_all_choices(table):
    cost, bits, budget = table
    every = [tally(cost,bits,list(c)) for c in itertools.product(range(cost.shape[1]), repeat=len(cost))]
    best = min(c for c,b in every if b<=budget)
    value = {f:tally(cost, bits, f(cost,bits,budget)) for f in (knapsack,greedy,lagrangian)}
    assert all(b<=budget for _,b in value.values()) and abs(value[knapsack][0]-best)<1e-9
    assert value[knapsack][1]==min(b for c,b in every if b<=budget and c<best+1e-9)
    order = lower_bound(cost,bits,budget), best, value[greedy][0], value[lagrangian][0]
    assert all(a<=b+1e-9 for a,b in zip(order,order[1:])), order
    with pytest.raises(ValueError, match='impossible'): knapsack(cost, bits, bits.amin(1).sum().item()-1)

# number formats

CODECS = {n:m.make() for n,m in methods().items() if m.kind=='codec'}
def noise(shape, seed): return torch.randn(shape, generator=gen(seed))
def spiked(x): x = x.clone(); x.view(-1)[x.numel()//2] = 1e4; return x
AWKWARD = dict(zeros=lambda x: 0*x, constant=lambda x: 0*x-3, huge=lambda x: x*1e30, largest=lambda x: 0*x+3.4e38,
               subnormal=lambda x: x*1e-42, outlier=spiked, negative=lambda x: -x.abs(), mixed=lambda x: x*10.**(8*x),
               tiny_and_huge=lambda x: torch.where(x>0, 1e30, 1e-42))
codecs = pytest.mark.parametrize('codec', [pytest.param(c, id=n) for n,c in CODECS.items()])

def columns(c): return max(c.block, c.group if c.group>0 else 8*c.block) # the fewest that the format takes
def narrow(c): return replace(c, group=c.block) if 'group' in {f.name for f in fields(c)} else c

@codecs
@tries(40)
@given(rows=st.integers(1,3), name=st.sampled_from(sorted(AWKWARD)), seed=st.integers(0,9))
def test_formats_bear_awkward_numbers(codec, rows, name, seed):
    for c in (codec, narrow(codec)): # the default, and rows of one block
        x = AWKWARD[name](noise((rows,columns(c)),seed)); before = x.clone(); q = c(x); y = q.decode()
        assert y.shape==x.shape and torch.isfinite(y).all(), f'{name}: {y}'
        assert torch.equal(x,before) and torch.equal(c.fake(x),y); pack_parts(q)

@codecs
def test_formats_refuse_what_is_no_number(codec):
    x = noise((2,columns(codec)), 0)
    for bad in (math.nan, math.inf, -math.inf):
        y = x.clone(); y[0,-1] = bad
        for f in (codec, codec.fake):
            with pytest.raises(ValueError): f(y)
    for empty in (x[:0], x[:,:0]):
        with pytest.raises(ValueError): codec(empty)

@tries(100)
@given(shape=st.lists(st.integers(0,6), max_size=3).map(tuple), group=st.integers(-2,7))
def test_groups_cut_all_or_refuse(shape, group):
    x = torch.arange(math.prod(shape)).reshape(shape)
    fits = x.ndim>0 and x.numel()>0 and group>-2 and (group<1 or shape[-1]%group==0)
    if not fits:
        with pytest.raises(ValueError): groups(x, group)
    else:
        size = {-1:shape[-1], 0:x.numel()}.get(group, group)
        assert torch.equal(groups(x,group), x.reshape(-1,size))

# statistics

@tries(60)
@given(n=st.integers(0,40), cut=st.integers(0,40), i=st.integers(1,9), power=st.integers(-6,6), seed=st.integers(0,99))
def test_statistics_add(n, cut, i, power, seed):
    scale = 10.**power
    X = scale*noise((n,i),seed); a, b, whole = stats_of(X[:cut]), stats_of(X[cut:]), stats_of(X); s = a+b
    near(s.H, whole.H, 1e-5, 1e-6*scale**2*n); near(s.total, whole.total, 1e-9, 1e-9*scale*n)
    assert s.n==whole.n==n and torch.equal(s.absmax,whole.absmax) and torch.equal((b+a).H,s.H)
    assert torch.equal(stats_of(X.reshape(1,n,i)).H, whole.H)
    with pytest.raises(ValueError, match='cannot add'): a+stats_of(noise((3,i+1),0))

# damaged files

@contextmanager
def frugal(megabytes=256, seconds=5): # fail if the block asks for more memory or time
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    start, now = time.perf_counter(), Path('/proc/self/statm')
    if now.exists(): # elsewhere only the time is limited
        most = int(now.read_text().split()[0])*resource.getpagesize()+megabytes*2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.perf_counter()-start<seconds, 'this takes too long'

def answer(path, data): # what is loaded, or None if it is refused as it should be
    path.write_bytes(data)
    with frugal():
        try: return load(path)[0]
        except ValueError as e: message = str(e)
    assert 'alloc' not in message and 'memory' not in message, message # refused before memory is asked for
    assert message.startswith(str(path)) and len(message)<1000
    return None

def shape(t): return (t.shape, {k:shape(p) for k,p in t.parts.items()}) if isinstance(t,QTensor) else tuple(t.shape)
def shapes(tensors): return {k:shape(t) for k,t in tensors.items()}

@pytest.fixture(scope='module')
def good(tmp_path_factory): # a file: its bytes, its tensors, where its data begin
    c = torch.randint(0, 8, (6,16), generator=gen(0)).to(torch.uint8); book = noise((4,2),0).half()
    def q(c): return QTensor(dict(codes=c,book=book), dict(codes=3,book=16), 'a.b', dict(mid=4), (6,16))
    tensors = dict(a=q(c), b=q((c+1)%8), w=noise((5,3),1), n=torch.arange(7))
    data = save(tensors, tmp_path_factory.mktemp('good')/'t.safetensors', dict(made='here')).read_bytes()
    return data, tensors, 8+struct.unpack('<Q',data[:8])[0]

def test_a_file_cut_anywhere_is_refused(good, tmp_path):
    data, _, start = good; entries = json.loads(data[8:start]).values()
    ends = [e['data_offsets'][1] for e in entries if 'data_offsets' in e]
    places = {*range(12), *range(12,start,37), *(start+e+d for e in (0,*ends) for d in (-9,-1,0,1,9))}
    for n in sorted(p for p in places if p<len(data)): assert answer(tmp_path/'t', data[:n]) is None, n
    assert answer(tmp_path/'t', data+b'\0') is None

@tries(400)
@given(st.lists(st.tuples(st.integers(0,10**6-1), st.integers(1,255)), min_size=1, max_size=3), st.booleans())
def test_flipped_bytes_change_numbers_or_are_refused(good, tmp_path, flips, header):
    data, tensors, start = good; b = bytearray(data)
    for at,by in flips: b[at*start//10**6 if header else start+at*(len(data)-start)//10**6] ^= by
    got = answer(tmp_path/'t', bytes(b))
    assert header or shapes(got)==shapes(tensors)
    for q in (got or {}).values(): # whatever a header says, nothing is larger than the file allows
        ts = [*q.parts.values()] if isinstance(q,QTensor) else [q]
        assert sum(t.numel() for t in ts)<=8*len(data) and math.prod(q.shape)<=4096*len(data)

def rewritten(good, f=None, text=str): # the same data; f changes the headers (safetensors', ours), text ours
    data, _, start = good; head = json.loads(data[8:start]); own = json.loads(head['__metadata__']['quantlab'])
    if f: f(head, own)
    if '__metadata__' in head: head['__metadata__']['quantlab'] = text(json.dumps(own))
    raw = json.dumps(head).encode(); return struct.pack('<Q',len(raw))+raw+data[start:]

def codes(**new): return lambda h,o: o['tensors']['a']['parts']['codes'].update(new)
def tensor(**new): return lambda h,o: o['tensors']['a'].update(new)
def plain(**new): return lambda h,o: h['w'].update(new)
def ours(f): return lambda h,o: f(o)
HEADS = dict(
    dtype=plain(dtype='F16'), no_dtype=plain(dtype='X9'), part_as_float=lambda h,o: h['a.codes'].update(dtype='I8'),
    shape=plain(shape=[5,4]), negative=plain(shape=[-5,-3]), backwards=plain(data_offsets=[60,0]),
    overlap=lambda h,o: h['w'].update(data_offsets=h['a.codes']['data_offsets']), gap=lambda h,o: h.pop('n'),
    beyond=plain(data_offsets=[0,2**40]), huge_offset=plain(data_offsets=[0,2**64]),
    no_metadata=lambda h,o: h.pop('__metadata__'), no_tensors=ours(lambda o: o.pop('tensors')),
    tensors_list=ours(lambda o: o.update(tensors=[1])), infinite=ours(lambda o: o.update(note=math.inf)),
    no_key=codes(key='nowhere'), key_list=codes(key=[]), key_none=codes(key=None),
    width_0=codes(width=0), width_65=codes(width=65), width_true=codes(width=True), width_text=codes(width='3'),
    width_half=codes(width=3.5), width_other=codes(width=4), width_huge=codes(width=10**400),
    dtype_complex=codes(dtype='complex64'), dtype_list=codes(dtype=[]), codes_as_float=codes(dtype='float32'),
    part_shape=codes(shape=[6,17]), part_huge=codes(shape=[2**40,2**40]), part_negative=codes(shape=[-6,-16]),
    part_true=codes(shape=[True]), part_text=codes(shape='616'), second_way=codes(key='b.codes',shape=[16,6]),
    decoded_huge=tensor(shape=[2**31,2**31]), decoded_text=tensor(shape='x'), fmt_number=tensor(fmt=3),
    meta_list=tensor(meta=[]), parts_list=tensor(parts=[1]))

@pytest.mark.parametrize('name', HEADS)
def test_impossible_headers_are_refused(good, tmp_path, name):
    assert answer(tmp_path/'t', rewritten(good, HEADS[name])) is None

def instead(old, new): return lambda s: s.replace(old, new)
BOMBS = dict(
    deep_list=lambda s: '['*5_000_000, deep_object=lambda s: '{"a":'*500_000, long_integer=lambda s: '9'*5_000_000,
    long_width=instead('"width": 3', '"width": '+'9'*4000), cut=lambda s: s[:-1], nothing=lambda s: '',
    number=lambda s: '1',
    many_zeros=instead('"shape": [6, 16]', '"shape": ['+'0,'*2_000_000+'0]'), text=lambda s: '"'+'a'*10_000_000+'"',
    nan=instead('"mid": 4','"mid": NaN'), infinity=instead('"mid": 4','"mid": 1e999'))

@pytest.mark.parametrize('name', BOMBS)
def test_bombs_of_json_are_refused(good, tmp_path, name):
    assert answer(tmp_path/'t', rewritten(good, text=BOMBS[name])) is None

@pytest.mark.parametrize('n', (0, 1, 2**20, 10**8, 10**8+1, 2**31, 2**32+8, 2**63, 2**64-1))
def test_a_header_of_the_wrong_length_is_refused(good, tmp_path, n):
    assert answer(tmp_path/'t', struct.pack('<Q',n)+good[0][8:]) is None
    with pytest.raises(ValueError): load_note(tmp_path/'t')

def test_ten_megabytes_of_header(good, tmp_path): # long is not wrong
    data, tensors, start = good; pad = 10_000_000
    padded = struct.pack('<Q',start-8+pad)+data[8:start]+b' '*pad+data[start:]
    assert shapes(answer(tmp_path/'t', padded))==shapes(tensors)
    assert answer(tmp_path/'t', struct.pack('<Q',pad)+b'['*pad+data[start:]) is None
    assert shapes(answer(tmp_path/'t', rewritten(good, lambda h,o: o.update(note='a'*pad))))==shapes(tensors)

def test_a_header_of_products_is_refused_in_time(good, tmp_path): # a product of so many numbers takes minutes
    assert answer(tmp_path/'t', rewritten(good, codes(shape=[2**62]*60_000))) is None
    assert answer(tmp_path/'t', rewritten(good, tensor(shape=[2**62]*60_000))) is None

# what cannot be stored

def one(**part): return QTensor(part, {k:3 for k in part}, 'a.b', {}, (4,))
def test_two_parts_never_share_a_name(tmp_path):
    a, b = torch.tensor([1,2,3,4]), torch.tensor([5,6,7,0]); tensors = {'x':one(**{'y.z':a}), 'x.y':one(z=b)}
    try: back = load(save(tensors, tmp_path/'t.safetensors'))[0]
    except ValueError: return
    assert torch.equal(back['x'].parts['y.z'],a) and torch.equal(back['x.y'].parts['z'],b)

w, book = torch.ones(4,4), torch.tensor([1,2,3,4])
def empty(meta): return QTensor({}, {}, 'a.b', meta, (0,))
REFUSED = dict(
    reserved_name={'__metadata__':w}, no_text={'\ud800':w}, shared_memory=dict(a=w, b=w[:2]),
    negative=dict(a=one(p=-book)), too_wide=dict(a=one(p=8*book)), meta_nan=dict(a=empty(dict(x=math.nan))),
    meta_tensor=dict(a=empty(dict(x=w))),
    two_widths=dict(a=one(p=book), b=QTensor(dict(p=book),dict(p=4),'a.b',{},(4,))))

@pytest.mark.parametrize('name', REFUSED)
def test_what_a_file_cannot_hold_is_refused(tmp_path, name):
    with pytest.raises(ValueError): save(REFUSED[name], tmp_path/'t.safetensors')
    assert not list(tmp_path.iterdir()), 'something was written'

@pytest.mark.parametrize('width', (True, 0, -3, 2.5, 65, '3', None))
def test_widths_are_whole_bits(width):
    with pytest.raises(ValueError, match='width'): QTensor(dict(p=w.long()), dict(p=width), 'a.b', {}, (4,4))

def test_an_empty_tensor_can_be_shown(): assert 'QTensor((0,)' in repr(QTensor({},{},'a.b',{},(0,)))

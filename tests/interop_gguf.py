"""Files written here are run by llama.cpp: same tokens, same logits up to the rounding of inputs, same text.

    python -m pytest tests/interop_gguf.py          # with llama-cpp-python in this environment, or in the one that
    QUANTLAB_LLAMA=other/bin/python                 # this variable names; skipped if neither has it"""
import copy, json, os, subprocess, sys
from functools import cache
import numpy as np
import pytest, torch
from torch import nn
from quantlab.core.pipe import pipe, quantize
from quantlab.core.skills import skill_items
from quantlab.core.testbed import calibration, held_text, llama, tiny_llama
from quantlab.export.gguf import load_gguf, save_gguf
from quantlab.export.gguf_blocks import FORMS, PLAIN, decode_blocks, row_bytes
from quantlab.export.gguf_fit import Block, encode_blocks
from quantlab.formats.blocks import MX
from quantlab.formats.int import Int, SymInt
from quantlab.ptq.gptq import GPTQ
from quantlab.ptq.rtn import WeightedRTN
from quantlab.testbeds.zoo import tiny

PYTHON = os.environ.get('QUANTLAB_LLAMA', sys.executable)
RUN = """
import json, sys, numpy as np
from llama_cpp import Llama
job = json.load(open(sys.argv[1])); l = Llama(job['file'], n_ctx=1024, logits_all=True, verbose=False, n_threads=1,
    n_threads_batch=1, type_k=0, type_v=0)
texts = [l.tokenize(t.encode(), add_bos=False, special=False) for t in job['texts']]
l.eval(job['ids']); logits = np.array(l.scores[:len(job['ids'])])
out = []
for ids in job['prompts']:
    l.reset(); l.eval(ids); said = []
    for _ in range(job['length']): said.append(int(np.argmax(l.scores[l.n_tokens-1]))); l.eval(said[-1:])
    out.append(said)
np.save(job['logits'], logits); json.dump(dict(texts=texts, said=out), open(job['answer'],'w'))
"""

@cache
def there(): # why llama.cpp cannot be run, if so
    try: r = subprocess.run([PYTHON, '-c', 'import llama_cpp'], capture_output=True, text=True)
    except OSError as e: return str(e)
    return r.stderr.strip().splitlines()[-1] if r.returncode else ''

needs_llama = pytest.mark.skipif(bool(there()), reason=f'llama.cpp does not run here: {there()}')

def run(path, ids, prompts=(), texts=(), length=24): # logits, continuations, tokens of texts
    job = dict(file=str(path), ids=ids, prompts=list(prompts), texts=list(texts), length=length,
               logits=f'{path}.npy', answer=f'{path}.json')
    order = path.with_suffix('.job'); order.write_text(json.dumps(job))
    r = subprocess.run([PYTHON, '-c', RUN, str(order)], capture_output=True, text=True)
    assert r.returncode==0, r.stderr[-2000:]
    a = json.loads(open(job['answer']).read()); return torch.tensor(np.load(job['logits'])), a['said'], a['texts']

# what llama.cpp does to the inputs of a product: 8 bits in blocks for weights in blocks, else the type of the weights

def eight(x, group): # largest magnitude to 127
    r = x.reshape(-1, group); d = r.abs().amax(1,keepdim=True)/127
    return ((r/torch.where(d>0,d,1.)).round()*d).reshape(x.shape)

def rounded(x, kind):
    if kind in PLAIN: return x.to(PLAIN[kind][1]).float()
    return eight(x, 256 if kind.endswith('_K') or kind.startswith('TQ') else 32)

def simulated(model, plain='BF16'): # a copy with its inputs rounded; layers that are not in blocks have type `plain`
    new = copy.deepcopy(model)
    def hook(kind): return lambda m, args: (rounded(args[0], kind),)
    for m in new.modules():
        if hasattr(m,'q'): m.register_forward_pre_hook(hook(m.q.meta['kind']))
        elif isinstance(m, nn.Linear): m.register_forward_pre_hook(hook(plain))
    return new

def greedy(model, ids, length):
    x = torch.tensor([ids]); how = dict(attention_mask=torch.ones_like(x), pad_token_id=0, eos_token_id=None)
    return model.generate(x, max_new_tokens=length, min_new_tokens=length, do_sample=False, **how)[0,len(ids):].tolist()

def distance(a, b): return ((a-b).norm()/b.norm()).item()

PROMPTS = 'def read_file(path):\n    """', 'import os\nimport ', 'class Stack:\n    def __init__(self'
ASKED = [q for s in ('add2','choice','recall') for q,_ in skill_items(s, 4)] # answers of which the model is sure
LENGTH = 24

@cache
def bed(): m, tok = llama(); return m, tok, calibration(tok, 8, 256)

def logits(model, ids):
    with torch.no_grad(): return model(torch.tensor([ids])).logits[0]

def behind(model, ids, said): # how far each token that was said is behind the best, given those before it
    y = logits(model, ids+said)[len(ids)-1:-1]
    return (y.amax(1)-y.gather(1,torch.tensor(said)[:,None])[:,0]).max().item()

def compare(path, model, tok, plain='BF16'): # `model` is what the file says, in float32
    ids = calibration(tok, 1, 128, seed=1)[0][0].tolist(); prompts = [tok.encode(p) for p in (*PROMPTS,*ASKED)]
    got, said, _ = run(path, ids, prompts)
    want, alike = logits(model,ids), logits(simulated(model,plain),ids)
    error, room, most = distance(got,want), distance(alike,want), (got-want).abs().max().item()
    worst = max(behind(model,p,s) for p,s in zip(prompts,said))
    same = [s==greedy(model,p,LENGTH) for p,s in zip(prompts[:3],said)]
    answers = [s[:3]==greedy(model,p,3) for p,s in zip(prompts[3:],said[3:])]
    print(f'{path.stem}: logits differ by {error:.2e}, by rounded inputs {room:.2e}; {sum(same)} of 3 texts, '
          f'{sum(answers)} of {len(answers)} answers the same; tokens up to {worst:.2e} behind, logits {most:.2e}')
    assert error<=1.5*room+1e-5, f'logits differ by {error:.2e}; rounded inputs explain {room:.2e}'
    assert worst<=2*most, f'a token was said that is {worst:.2e} behind, and logits differ by {most:.2e}'
    assert plain not in ('F32','F16') or all((*same,*answers))

@needs_llama
def test_tokens(tmp_path):
    m, tok, _ = bed(); path = save_gguf(m, tmp_path/'tokens.gguf', tok)
    odd = 'x = 12345 + 3.14e-7', '  \t\n\n  a', "it's  we'll\r\n", 'naïve ∑ 漢字 🙂', ' ', 'a', ''
    texts = [*(s[:3000] for s in held_text()[:12]), *odd]
    _, _, got = run(path, [1], texts=texts)
    for t,ids in zip(texts,got): assert ids==tok.encode(t), repr(t[:60])

def pieces(text, size, first): # a sentence-piece tokenizer learned here, with every way to split a token as a merge
    import tokenizers as T
    from transformers import PreTrainedTokenizerFast
    learn = T.Tokenizer(T.models.BPE()); learn.pre_tokenizer = T.pre_tokenizers.Metaspace()
    learn.train_from_iterator(text, T.trainers.BpeTrainer(vocab_size=size, show_progress=False))
    found = sorted(learn.get_vocab(), key=learn.get_vocab().get)
    names = ['<unk>','<s>','</s>', *(f'<0x{b:02X}>' for b in range(256)), *sorted(found, key=lambda t: len(t)==1)]
    ids = {t:k for k,t in enumerate(names)}
    pairs = [(t[:k],t[k:]) for t in names[259:] for k in range(1,len(t)) if {t[:k],t[k:]}<=ids.keys()]
    tok = T.Tokenizer(T.models.BPE(ids, pairs, byte_fallback=True, fuse_unk=True, unk_token='<unk>')); N = T.normalizers
    if first: tok.pre_tokenizer = T.pre_tokenizers.Metaspace(split=False, prepend_scheme='first') # as Llama 2
    else: tok.normalizer = N.Replace(' ','▁') # as Gemma
    return PreTrainedTokenizerFast(tokenizer_object=tok, unk_token='<unk>', bos_token='<s>', eos_token='</s>')

@needs_llama
@pytest.mark.parametrize('first', (True,False))
def test_pieces_of_sentences(tmp_path, first):
    seen, new = [t[:1500] for t in held_text()[::2]], [t[:1500].lstrip() for t in held_text()[1::2]]
    tok = pieces(seen, 2000, first); m = tiny_llama(vocab_size=len(tok)+1)
    odd = 'x = 12345 + 3.14e-7', 'a  b   c    d ', "it's  we'll\r\n", 'naïve ∑ 漢字 🙂', 'a', '', '\ta\n\n\n  b'
    texts = [*new, *odd, *(('  indented',) if not first else ())]
    _, _, got = run(save_gguf(m, tmp_path/'pieces.gguf', tok), [1], texts=texts)
    same = [ids==tok.encode(t, add_special_tokens=False) for t,ids in zip(texts,got)]
    print(f'pieces, a space in front {first}: {sum(same)} of {len(texts)} texts, {sum(map(len,got))} tokens')
    assert all(same), repr(texts[same.index(False)][:60])

@needs_llama
@pytest.mark.parametrize('kind', (*PLAIN,*FORMS))
def test_one_type(tmp_path, kind):
    m, tok, _ = bed(); path = save_gguf(m, tmp_path/f'{kind}.gguf', tok, {'*':kind} if kind in PLAIN else kind)
    compare(path, load_gguf(path), tok, kind if kind in PLAIN else 'BF16')

@needs_llama
def test_types_that_differ(tmp_path):
    m, tok, _ = bed()
    rules = {'*.down_proj':'Q6_K', '*.v_proj':'Q8_0', '*.layers.[0-3].*':'Q5_K', '*embed*':'Q8_0', '*':'Q4_K'}
    path = save_gguf(m, tmp_path/'mixed.gguf', tok, rules)
    compare(path, load_gguf(path), tok, 'Q8_0')

CODECS = dict(int4=Int(4,64), symint4=SymInt(4,32), symint8=SymInt(8,32), int3=Int(3,128), mxfp4=MX(),
              iq4=Block('IQ4_NL'))
SOLVED = {**{n:GPTQ(c) for n,c in CODECS.items()}, 'q4_k':WeightedRTN(Block('Q4_K'))}

@needs_llama
@pytest.mark.parametrize('name', SOLVED)
def test_solved_models_keep_their_codes(tmp_path, name): # two layers: solving takes most of the time
    m, tok, batches = bed(); m = copy.deepcopy(m); del m.model.layers[2:]; m.config.num_hidden_layers = 2
    q = pipe(m, batches, quantize(SOLVED[name]))
    path = save_gguf(q, tmp_path/f'{name}.gguf', tok); back = load_gguf(path); ids = tok.encode(PROMPTS[0])
    assert torch.equal(logits(back,ids), logits(q,ids))
    compare(path, back, tok)

@needs_llama
@pytest.mark.parametrize('family', ('qwen2','qwen3'))
def test_families(tmp_path, family):
    m = tiny(family); ids = list(range(2,34))
    for p in m.parameters(): p.data += torch.randn(p.shape, generator=torch.Generator().manual_seed(1))/50
    path = save_gguf(m, tmp_path/f'{family}.gguf', types={'*':'F32'})
    got, said, _ = run(path, ids, [ids]); want = logits(m, ids)
    assert distance(got,want)<1e-5 and said==[greedy(m,ids,LENGTH)]

LLAMA3 = dict(rope_type='llama3', factor=8., low_freq_factor=1., high_freq_factor=4.,
              original_max_position_embeddings=64)
ROPES = dict(llama3=('llama',LLAMA3), linear=('llama',dict(rope_type='linear',factor=4.)),
             linear_qwen3=('qwen3',dict(rope_type='linear',factor=4.)))

@needs_llama
@pytest.mark.parametrize('name', ROPES)
def test_scaled_positions(tmp_path, name): # four times as far as the model of the rule has seen
    family, rope = ROPES[name]; ids = torch.randint(2, 97, (256,), generator=torch.Generator().manual_seed(2)).tolist()
    def made(rope):
        m = tiny(family); c = copy.deepcopy(m.config)
        c.update(dict(head_dim=64, max_position_embeddings=256, rope_parameters=dict(rope,rope_theta=1e4)))
        m = type(m)(c).eval()
        for k,p in enumerate(m.parameters()):
            p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(k))/4 if p.dim()>1 else p.data
        return m
    m, plain = made(rope), made(dict(rope_type='default'))
    path = save_gguf(m, tmp_path/f'{name}.gguf', types={'*':'F32'}); back = load_gguf(path)
    got, said, _ = run(path, ids, [ids[:200]]); want, other = logits(m,ids), logits(plain,ids)
    print(f'{name}: logits differ by {distance(got,want):.2e}, by {distance(got,other):.2e} without the scaling')
    assert torch.equal(logits(back,ids), want) and back.config.rope_parameters==m.config.rope_parameters
    assert distance(got,want)<1e-5 and distance(got,other)>1e-2 and said==[greedy(m,ids[:200],LENGTH)]

# encoders

ENCODE = """
import ctypes, glob, json, os, sys, numpy as np, llama_cpp
lib = ctypes.CDLL(glob.glob(os.path.join(os.path.dirname(llama_cpp.__file__), 'lib', '*ggml-base.*'))[0])
f, p, n = lib.ggml_quantize_chunk, ctypes.c_void_p, ctypes.c_int64; f.restype = ctypes.c_size_t
f.argtypes = [ctypes.c_int, p, p, n, n, n, p]; job = json.load(open(sys.argv[1]))
x, w = np.load(job['x']), np.load(job['w'])
for name,(number,size) in job['types'].items():
    for tag,v in (('equal',None),('weighted',w.ctypes.data)):
        out = np.zeros((len(x),size), np.uint8)
        assert f(number, x.ctypes.data, out.ctypes.data, 0, len(x), x.shape[1], v)==out.size
        np.save(f"{job['out']}.{name}.{tag}.npy", out)
"""

def encoded_there(x, w, folder): # (format, 'equal' or 'weighted') -> bytes
    job = dict(x=str(folder/'x.npy'), w=str(folder/'w.npy'), out=str(folder/'b'),
               types={n:(f.type,row_bytes(x.shape[1],n)) for n,f in FORMS.items()})
    np.save(job['x'], x.numpy()); np.save(job['w'], w.numpy()); (folder/'job').write_text(json.dumps(job))
    r = subprocess.run([PYTHON, '-c', ENCODE, str(folder/'job')], capture_output=True, text=True)
    assert r.returncode==0, r.stderr[-2000:]
    return {(n,t):torch.tensor(np.load(f"{job['out']}.{n}.{t}.npy")) for n in FORMS for t in ('equal','weighted')}

@needs_llama
def test_encoders_lose_no_more(tmp_path): # at the same bytes; llama.cpp adds weights of its own to those it is given
    g = torch.Generator().manual_seed(0); m, _, _ = bed()
    w, W = torch.randn(768, generator=g).exp(), m.model.layers[3].mlp.down_proj.weight.data
    for label,x in dict(gauss=torch.randn(128,768,generator=g), llama=W).items():
        ratio = {}
        for (n,t),b in encoded_there(x, w, tmp_path).items():
            v = w[None] if t=='weighted' else torch.ones(1,768)
            def loss(b): return ((decode_blocks(b,n)-x).square()*v).sum().item()
            ratio[n,t] = loss(encode_blocks(x, n, v if t=='weighted' else None))/loss(b)
        print(label, ', '.join(f'{n} {t} {r:.3f}' for (n,t),r in ratio.items()))
        assert max(ratio.values())<=1, f'{label}: {max(ratio,key=ratio.get)} loses more'

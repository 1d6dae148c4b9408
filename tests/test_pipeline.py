"""From a model to a file and back: every registered solver, on a tiny Llama that nobody trained."""
import subprocess, sys
import pytest, torch
from transformers import LlamaConfig, LlamaForCausalLM
from quantlab.core import *

SOLVERS = [pytest.param(m, id=n) for n,m in methods().items() if m.kind=='solver']

@pytest.fixture(scope='module')
def model():
    cfg = LlamaConfig(vocab_size=96, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=2,
                      num_key_value_heads=1, head_dim=64, max_position_embeddings=64, tie_word_embeddings=True)
    with torch.random.fork_rng(): torch.manual_seed(0); return LlamaForCausalLM(cfg).eval()

@pytest.fixture(scope='module')
def batches(): return [torch.randint(0, 96, (2,48), generator=gen(s)) for s in range(3)]

def logits(m, x):
    with torch.no_grad(): return m(x).logits

@pytest.fixture(scope='module')
def m(request): return request.param

@pytest.fixture(scope='module')
def q(model, batches, m): # quantized by one solver, once for all tests of it; the model stays as it was
    with untouched(*model.state_dict().values()): return pipe(model, batches, quantize(m.make()))

@pytest.mark.parametrize('m', SOLVERS, indirect=True)
def test_quantize_covers_every_layer(model, batches, m, q):
    assert qlayers(q).keys()==quantizable(model).keys() and bits_per_weight(q)<16
    assert logits(q,batches[0]).isfinite().all() and not torch.equal(logits(q,batches[0]), logits(model,batches[0]))

@pytest.mark.parametrize('m', SOLVERS, indirect=True)
def test_same_seed_same_bits(model, batches, m, q):
    again = qlayers(pipe(model, batches, quantize(m.make())))
    for n,l in qlayers(q).items():
        for k,t in l.q.parts.items(): assert torch.equal(t, again[n].q.parts[k]), f'{n} {k}'

LOAD = '''import sys, torch; from quantlab.core import *
for line in sys.stdin:
    folder, x = line.split('\\t'); m, x = load_model(folder), torch.load(x.strip(), weights_only=True)
    same = torch.equal(m(x['ids']).logits, x['logits'])
    print(f"{same} {stored_bits([l.q for l in qlayers(m).values()])}", flush=True)'''

@pytest.fixture(scope='module')
def elsewhere(): # a process that has never seen the models it is told to load
    p = subprocess.Popen([sys.executable, '-c', LOAD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield p
    p.stdin.close(); p.wait(60)

@pytest.mark.parametrize('m', SOLVERS, indirect=True)
def test_saved_model_in_another_process(batches, m, q, elsewhere, tmp_path):
    folder, x = save_model(q, tmp_path/'model'), tmp_path/'x.pt'
    torch.save(dict(ids=batches[0], logits=logits(q,batches[0])), x)
    print(folder, x, sep='\t', file=elsewhere.stdin, flush=True)
    bits = stored_bits([l.q for l in qlayers(q).values()])
    assert elsewhere.stdout.readline()==f'True {bits}\n', 'logits or bits differ'

@pytest.mark.parametrize('m', SOLVERS, indirect=True)
def test_file_is_as_small_as_counted(m, q, tmp_path):
    save_model(q, tmp_path)
    size, counted = (tmp_path/'model.safetensors').stat().st_size, stored_bits([l.q for l in qlayers(q).values()])/8
    rest = sum(t.numel()*t.element_size() for t in model_tensors(q).values() if isinstance(t,torch.Tensor))
    with open(tmp_path/'model.safetensors','rb') as f: header = 8+int.from_bytes(f.read(8),'little')
    parts = sum(len(l.q.parts) for l in qlayers(q).values())
    assert counted<=size-rest-header<=counted+parts, 'each part may be padded to a whole byte, and nothing else'

def test_a_chain_of_transform_and_solver(model, batches):
    solvers = [m for m in methods().values() if m.kind=='solver']
    if not solvers: pytest.skip('no solver is registered yet')
    half_of_the_first = quantize({'model.layers.0.mlp.*':solvers[0].make()})
    q = pipe(model, batches, half_of_the_first)
    assert all(n.startswith('model.layers.0.mlp.') for n in qlayers(q)) and len(qlayers(q))==3

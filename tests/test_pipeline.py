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

@pytest.mark.parametrize('m', SOLVERS)
def test_quantize_keeps_the_callers_model(model, batches, m):
    with untouched(*model.state_dict().values()): q = pipe(model, batches, quantize(m.make()))
    assert qlayers(q).keys()==quantizable(model).keys() and bits_per_weight(q)<16
    assert logits(q,batches[0]).isfinite().all() and not torch.equal(logits(q,batches[0]), logits(model,batches[0]))

@pytest.mark.parametrize('m', SOLVERS)
def test_same_seed_same_bits(model, batches, m):
    a, b = (pipe(model, batches, quantize(m.make())) for _ in range(2))
    for n,l in qlayers(a).items():
        for k,t in l.q.parts.items(): assert torch.equal(t, qlayers(b)[n].q.parts[k]), f'{n} {k}'

LOAD = '''import sys, torch; from quantlab.core import *
m, x = load_model(sys.argv[1]), torch.load(sys.argv[2], weights_only=True)
assert torch.equal(m(x['ids']).logits, x['logits']), 'the loaded model computes something else'
print(stored_bits([l.q for l in qlayers(m).values()]))'''

@pytest.mark.parametrize('m', SOLVERS)
def test_saved_model_in_a_fresh_process(model, batches, m, tmp_path):
    q = pipe(model, batches, quantize(m.make()))
    folder, x = save_model(q, tmp_path/'model'), tmp_path/'x.pt'
    torch.save(dict(ids=batches[0], logits=logits(q,batches[0])), x)
    r = subprocess.run([sys.executable, '-c', LOAD, folder, x], capture_output=True, text=True)
    assert r.returncode==0, r.stderr
    assert int(r.stdout)==stored_bits([l.q for l in qlayers(q).values()])

@pytest.mark.parametrize('m', SOLVERS)
def test_file_is_as_small_as_counted(model, batches, m, tmp_path):
    q = pipe(model, batches, quantize(m.make())); save_model(q, tmp_path)
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
